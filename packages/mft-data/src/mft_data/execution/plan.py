"""What is to be built: sources, options and tokenizer turned into settings, facts and chunks, before any work."""

from __future__ import annotations

import hashlib
import math
import os
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import orjson

from mft_data.dataset.dataset_dir import producer
from mft_data.dataset.mds import mds_columns
from mft_data.encoding.choose_template import load_tokenizer_and_template
from mft_data.encoding.tokenizer import tokenizer_config
from mft_data.errors import DataError, RecordError
from mft_data.execution.read_chunk import Work
from mft_data.reading.chunks import source_documents
from mft_data.reading.records import file_format
from mft_data.reading.source_settings import SourceSettings
from mft_data.reading.sources import Source, file_sha256, find_sources
from mft_data.reading.tasks_file import is_tasks_file, read_tasks_file

if TYPE_CHECKING:
    from collections.abc import Mapping

    from transformers import PreTrainedTokenizerBase

    from mft_data.encoding.template import Template
    from mft_data.reading.fetched import Fetched
    from mft_data.reading.records import MaxRejects


@dataclass(frozen=True, slots=True)
class BuildOptions:
    """Everything but the paths of sources and output that decides what is built."""

    tokenizer_dir: Path
    seq_length: int
    template: str
    eos_token: str | None
    role_markers: Mapping[str, str]
    validation_fraction: float
    validation_sources: tuple[str, ...]
    packing: str
    overlong: str
    seed: int
    record_format: str | None
    fields: Mapping[str, str]
    train_on: str
    limit: int | None
    max_rejects: MaxRejects
    is_strict: bool
    dedup: str
    decontaminate: tuple[Path, ...]
    contaminated: str


@dataclass(frozen=True, slots=True)
class Plan:
    """A build before it begins; `document` tells any two apart that would not give the same rows.

    How many records may be refused does not: what was built before one too many is of use with a higher limit.
    """

    work: Work
    tokenizer: PreTrainedTokenizerBase
    tokenizer_config: Mapping[str, Any]  # the decoded tokenizer.json
    template: Template
    document: bytes
    dedup: str
    max_rejects: MaxRejects


def make_plan(sources: list[Source], options: BuildOptions, scratch: Path) -> Plan:
    """The plan of a build, which leaves a tokenizer in the folder `scratch`; raises DataError."""
    task_names = list(dict.fromkeys(source.task for source in sources))
    tokenizer, template = load_tokenizer_and_template(
        options.tokenizer_dir, options.template, options.role_markers, options.eos_token, scratch
    )
    for source in sources:
        check_arguments(template, source)
    config = tokenizer_config(tokenizer)
    max_token_id = max(tokenizer.get_vocab().values())
    work = Work(
        sources=tuple(sources),
        task_ids=tuple(task_names.index(source.task) for source in sources),
        formats={
            (position, number): source.settings.record_format or file_format(file.path, source.settings.fields)
            for position, source in enumerate(sources)
            for number, file in enumerate(source.files)
        },
        seq_length=options.seq_length,
        overlong=options.overlong,
        packing=options.packing,
        seed=options.seed,
        is_strict=options.is_strict,
        allows_rejects=options.max_rejects.count != 0,
        problem_ngrams=load_ngrams(options.decontaminate),
        drops_contaminated=options.contaminated == "drop",
    )
    facts = {
        "seq_length": options.seq_length,
        "packing": options.packing,
        "overlong": options.overlong,
        "seed": options.seed,
        "validation_fraction": options.validation_fraction,
        "dedup": options.dedup,
        "decontaminated": [{"file": path.name, "sha256": file_sha256(path)} for path in options.decontaminate],
        "contaminated": options.contaminated,
        "template": template.name,
        "template_sha256": template.sha256(),
        "vocab_size": len(tokenizer),
        "max_token_id": max_token_id,
        "eos_token": tokenizer.eos_token,
        "eos_token_id": tokenizer.eos_token_id,
        "columns": mds_columns("uint16" if max_token_id < 1 << 16 else "uint32"),
    }
    settings = {
        "producer": producer(),
        "tokenizer_sha256": hashlib.sha256(orjson.dumps(config, option=orjson.OPT_SORT_KEYS)).hexdigest(),
        "strict_fields": options.is_strict,
        "tasks": task_names,
    }
    document = {"manifest": facts, "settings": settings, "sources": source_documents(sources)}
    content = orjson.dumps(document, option=orjson.OPT_INDENT_2)
    return Plan(work, tokenizer, config, template, content, options.dedup, options.max_rejects)


def check_arguments(template: Template, source: Source) -> None:
    """Raises DataError unless the template takes the arguments that a task has for it."""
    try:
        template.with_arguments(source.settings.template_arguments)
    except RecordError as error:
        what = f"template_arguments: {error.reason}"
        raise DataError(what, where=f'task "{source.task}"', fix=error.fix) from error


def all_sources(arguments: list[str], options: BuildOptions, fetched: Fetched) -> list[Source]:
    """The sources to train on, in their order, each followed by its own validation source if it has one.

    They are those of a tasks file, if that is the only argument; raises DataError.
    """
    settings = SourceSettings(
        record_format=options.record_format,
        fields=options.fields,
        train_on=options.train_on,
        limit=options.limit,
        validation_fraction=options.validation_fraction,
    )
    files = [argument for argument in arguments if is_tasks_file(argument)]
    if files and (len(arguments) > 1 or options.validation_sources):
        raise DataError(
            f'the tasks file "{files[0]}" has other sources beside it', fix="name all tasks and validation data in it"
        )
    if files:
        return read_tasks_file(Path(files[0]), settings, fetched)
    sources = find_sources(arguments, settings, fetched)
    held_out_settings = replace(settings, limit=None)
    held_out_sources = find_sources(list(options.validation_sources), held_out_settings, fetched)
    held_out = {source.task: source for source in held_out_sources}
    unknown = sorted(held_out.keys() - {source.task for source in sources})
    if unknown:
        raise DataError(
            f'validation source of task "{unknown[0]}", which has no source', fix="name it as its task: NAME=PATH"
        )
    ordered = []
    for source in sources:
        if source.task in held_out:
            ordered += [replace(source, split="train"), replace(held_out[source.task], split="validation")]
        else:
            ordered.append(source)
    return ordered


def load_ngrams(paths: tuple[Path, ...]) -> Any:
    """The n-grams of all problem files together, or None without one."""
    if not paths:
        return None
    import numpy as np

    from mft_data.filters.contamination import problem_ngrams

    return np.unique(np.concatenate([problem_ngrams(path) for path in paths]))


def usable_cores(cgroup: Path = Path("/sys/fs/cgroup")) -> int:
    """The cores that this process may use: no more than its container's share of processor time."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    quota = cgroup_quota(cgroup)
    return cores if quota is None else max(1, min(cores, math.ceil(quota)))


def cgroup_quota(cgroup: Path) -> float | None:
    """The processors that a control group (version 2, or 1) may keep busy, None without a limit."""
    try:
        quota, period = (cgroup / "cpu.max").read_text().split()
    except (OSError, ValueError):
        try:
            quota, period = (
                (cgroup / "cpu" / f"cpu.cfs_{name}_us").read_text().strip() for name in ("quota", "period")
            )
        except OSError:
            return None
    return int(quota) / int(period) if quota.isdecimal() and period.isdecimal() and int(period) else None
