"""Builds a dataset directory from task sources."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from mft_data.dataset_dir import mds_columns, write_manifest, write_rejects, write_rows
from mft_data.encode_task import EncodedTask, Limits, encode_task
from mft_data.encoder import make_encoder
from mft_data.packing import pack
from mft_data.progress import show_progress
from mft_data.records import Rejects
from mft_data.sources import file_sha256, find_sources
from mft_data.split import SPLITS, held_out
from mft_data.staging import check_output, staged_dir
from mft_data.template import TEMPLATES
from mft_data.tokenizer import load_tokenizer, save_tokenizer, tokenizer_config, tokenizer_sha256

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from mft_data.records import MaxRejects
    from mft_data.sources import Source


@dataclass(frozen=True, slots=True)
class BuildOptions:
    """Everything but the paths of sources and output that decides what is built."""

    tokenizer_dir: Path
    seq_length: int
    template: str
    eos_token: str | None
    role_markers: Mapping[str, str]
    validation_fraction: float
    packing: str
    overlong: str
    seed: int
    record_format: str | None
    max_rejects: MaxRejects


def build(source_arguments: list[str], out: Path, options: BuildOptions, overwrite: bool) -> dict[str, Any]:
    """Builds the dataset `out` and returns its manifest's contents; raises DataError."""
    sources = find_sources(source_arguments)
    check_output(out, overwrite, [source.path for source in sources])
    tokenizer = load_tokenizer(options.tokenizer_dir, options.eos_token)
    template = TEMPLATES[options.template](tokenizer.eos_token, options.role_markers)
    limits = Limits(options.seq_length, options.overlong, options.record_format)
    rejects = Rejects(options.max_rejects)
    num_bytes = sum(file.size_bytes for source in sources for file in source.files)
    with staged_dir(out) as staging:
        save_tokenizer(tokenizer, template.jinja(), staging / "tokenizer")
        # What every later reader loads from there is what has to encode.
        tokenizer = load_tokenizer(staging / "tokenizer", None)
        encoder = make_encoder(tokenizer_config(tokenizer), template)
        columns = mds_columns(encoder.ids_dtype)
        tasks = []
        with show_progress(num_bytes) as advance:
            for task_id, source in enumerate(sources):
                task = encode_task(source, encoder, limits, rejects, advance)
                splits = write_splits(staging, source.task, task_id, task, options, columns)
                tasks.append(task_entry(source, task_id, task, splits))
        rejects.check_percent(sum(task["conversations"]["read"] for task in tasks))
        write_rejects(staging, rejects.entries)
        manifest = {
            "seq_length": options.seq_length,
            "packing": options.packing,
            "overlong": options.overlong,
            "seed": options.seed,
            "validation_fraction": options.validation_fraction,
            "template": template.name,
            "template_sha256": template.sha256(),
            "tokenizer_sha256": tokenizer_sha256(staging / "tokenizer"),
            "vocab_size": len(tokenizer),
            "max_token_id": max(tokenizer.get_vocab().values()),
            "eos_token": tokenizer.eos_token,
            "eos_token_id": tokenizer.eos_token_id,
            "columns": columns,
            "tasks": tasks,
        }
        write_manifest(staging, manifest)
    return manifest


def write_splits(
    dataset_dir: Path, task_name: str, task_id: int, task: EncodedTask, options: BuildOptions, columns: dict[str, str]
) -> dict[str, Any]:
    """Packs and writes the train and validation rows of one task; returns the counts of each split."""
    is_validation = held_out(task.hashes, options.validation_fraction)
    counts = {}
    for split in SPLITS:
        positions = np.flatnonzero(is_validation == (split == "validation"))
        lengths = task.encoded.lengths[positions].tolist()
        packed = pack(lengths, options.seq_length, options.packing, f"{options.seed}/{split}/{task_name}")
        rows = [positions[row].tolist() for row in packed]
        counts[split] = asdict(write_rows(dataset_dir / split / task_name, columns, task_id, task.encoded, rows))
    return counts


def task_entry(source: Source, task_id: int, task: EncodedTask, splits: dict[str, Any]) -> dict[str, Any]:
    """The manifest's entry of one task."""
    return {
        "name": source.task,
        "task_id": task_id,
        "sources": [
            {"file": file.name, "size_bytes": file.size_bytes, "sha256": file_sha256(file.path)}
            for file in source.files
        ],
        "conversations": asdict(task.counts),
        "splits": splits,
    }
