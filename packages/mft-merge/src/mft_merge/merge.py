"""The merge: reads an adapter and its base, writes the merged model directory, publishes it by one rename."""

import os
import re
import shutil
import sys
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import click

from mft_merge.errors import MergeError
from mft_merge.extras import check_peft
from mft_merge.files.allocator import keep_freed_blocks
from mft_merge.files.json_file import read_json
from mft_merge.files.tensor_file import FLOAT_TYPES
from mft_merge.output.merge_record import (
    RECORD_NAME,
    foreign_file,
    make_record,
    quantization_shares,
    write_card,
    write_record,
)
from mft_merge.output.model_files import write_configs, write_index
from mft_merge.output.shard_writer import is_finished, shard_header, write_shard
from mft_merge.output.staging import Staging, discard, recover, staged
from mft_merge.planning.changes import stored_changes
from mft_merge.planning.plan import MergePlan, Target, make_plan, resharded
from mft_merge.planning.weighted import Combination, weighted_changes
from mft_merge.sources.adapter import Adapter, read_adapter
from mft_merge.sources.adapter_location import find_adapter
from mft_merge.sources.base_location import base_location
from mft_merge.sources.base_model import BaseModel, read_base_model
from mft_merge.sources.quantization import Quantization, read_quantization
from mft_merge.torch_import import import_torch
from mft_merge.values.low_rank_factors import read_finite
from mft_merge.verification.live_model import Live
from mft_merge.verification.verify import verify

# What the files beside the weights take at most: tokenizers are the largest of them.
OTHER_BYTES = 64 << 20


@dataclass(frozen=True, slots=True)
class Settings:
    """What the user asks for: `dtype` is "keep" or torch's name of a float type.

    `base_weights` of an adapter that was trained over a quantised base: "trained", those given back from quantisation,
    or "full".
    """

    base: str | None = None
    dtype: str = "keep"
    base_weights: str = "trained"
    overwrite: bool = False
    resume: bool = False
    verify: bool = False
    max_shard_bytes: int | None = None
    combination: Combination | None = None


def merge(weights: list[tuple[Path, float]], out_dir: Path, settings: Settings) -> dict[str, Any]:
    """Write to `out_dir` the model that adapters make of their base; returns the merge's record.

    `weights` are the directories of the adapters and what their updates are multiplied by. The base, unless the
    settings name it, the tokenizer and the template are those of the first.
    """
    read_finite.cache_clear()  # the files may be others than in an earlier call
    adapters = [(read_adapter(find_adapter(path)), weight) for path, weight in weights]
    adapter = adapters[0][0]
    base = read_base_model(base_location(settings.base, adapter.config, adapter.adapter_dir))
    quantization = _quantization(adapters)
    is_dequantized = quantization is not None and settings.base_weights == "trained"
    if settings.verify:
        check_peft("--verify")
    record = make_record(adapters, base, settings.dtype, "trained" if is_dequantized else "full")
    record["max_shard_bytes"] = settings.max_shard_bytes
    if settings.combination is not None:
        check_peft(f"--combine {settings.combination.rule}")
        record["combination"] = asdict(settings.combination)
    for each, _ in adapters:
        _check_base(record, each)
    recover(out_dir)
    if settings.resume and _is_done(out_dir, record):
        discard(out_dir)
        return read_json(out_dir / RECORD_NAME)
    _check_out(out_dir, (*(path for path, _ in weights), base.base_dir), overwrite=settings.overwrite)
    code = next((code for code, name in FLOAT_TYPES.items() if name == settings.dtype), "keep")
    modules = quantization.modules if quantization else ()
    parts = [(stored_changes(each, base, modules, is_dequantized=is_dequantized), weight) for each, weight in adapters]
    changes = weighted_changes(parts, settings.combination)
    target = Target(code, quantization, is_dequantized, settings.combination)
    plan = make_plan(changes, base, adapter.config, target)
    if settings.max_shard_bytes is not None:
        plan = resharded(plan, settings.max_shard_bytes)
    if quantization is None:
        for each, _ in adapters:
            _note_quantised_training(each)
    if plan.config_changes.get("tie_word_embeddings") is False:
        click.echo("note: input and output embeddings now differ, so the merged model does not tie them", err=True)
    import_torch()
    keep_freed_blocks()
    with staged(out_dir, _job(record, adapters, base), resume=settings.resume) as staging:
        _write_shards(plan, base, staging)
        write_index(plan, base, staging.model_dir)
        write_configs(plan, adapter.adapter_dir, base, staging.model_dir, settings.dtype)
        record = write_record(record, plan, staging.finished, staging.model_dir)
        write_card(record, staging.model_dir)
        if settings.verify:
            live = Live(
                base.base_dir,
                tuple((each.adapter_dir, weight) for each, weight in adapters),
                plan.config_changes.get("vocab_size"),
                quantization if is_dequantized else None,
                settings.combination,
            )
            record = record | {"verification": verify(live, staging.model_dir, plan)}
        staging.publish()
    for kind, share in quantization_shares(record).items():
        click.echo(f"note: {kind}: norm(W - W_q) / norm(update) = {share:.3g}", err=True)
    return record


def _quantization(adapters: list[tuple[Adapter, float]]) -> Quantization | None:
    """The quantisation that all adapters were trained over, which must be one."""
    found = [read_quantization(adapter.adapter_dir) for adapter, _ in adapters]
    if any(other != found[0] for other in found):
        raise MergeError(
            "the adapters were trained over bases that were quantised differently",
            where=", ".join(str(adapter.adapter_dir / "quantization.json") for adapter, _ in adapters),
            fix="merge them one by one",
        )
    return found[0]


def _check_base(record: dict[str, Any], adapter: Adapter) -> None:
    """Refuse a base that is not the one the adapter was trained on, where the adapter says which that was."""
    path = adapter.adapter_dir / "base_model.json"
    wanted = read_json(path).get("fingerprint") if path.is_file() else None
    if wanted is not None and wanted != record["base"]["fingerprint"]:
        raise MergeError(
            "the base model is not the one that the adapter was trained on: their weights differ",
            where=str(path),
            fix="name the right one with --base",
        )


def _is_done(out_dir: Path, record: dict[str, Any]) -> bool:
    """Whether `out_dir` is the finished result of this very merge."""
    path = out_dir / RECORD_NAME
    if not path.is_file():
        return False
    found = read_json(path)
    return all(found.get(key) == value for key, value in record.items())


def _job(record: dict[str, Any], adapters: list[tuple[Adapter, float]], base: BaseModel) -> dict[str, Any]:
    """What must be the same for an unfinished merge to go on: the record so far, and the input files untouched."""
    paths = [adapter.adapter_dir / "adapter_model.safetensors" for adapter, _ in adapters]
    paths += [shard.path for shard in base.shards]
    files = {str(path.resolve()): [path.stat().st_size, path.stat().st_mtime_ns] for path in paths}
    return record | {"files": files}


def _check_out(out_dir: Path, inputs: tuple[Path, ...], *, overwrite: bool) -> None:
    if out_dir.is_symlink():
        raise MergeError(f"{out_dir} is a symbolic link", fix="choose another OUT")
    out = out_dir.resolve()
    for path in inputs:
        if out == path.resolve() or out in path.resolve().parents:
            raise MergeError(f"the output {out_dir} is or holds the input {path}", fix="choose another OUT")
    if out_dir.exists() and not out_dir.is_dir():
        raise MergeError(f"{out_dir} is a file", fix="choose another OUT")
    if out_dir.is_dir() and any(out_dir.iterdir()):
        if not overwrite:
            raise MergeError(f"{out_dir} is not empty", fix="choose another OUT or use --overwrite")
        if other := foreign_file(out_dir):
            what = f'{out_dir} holds "{other}", which no merge put there, and is not replaced'
            raise MergeError(what, fix="choose another OUT, or move it away")


def _note_quantised_training(adapter: Adapter) -> None:
    """Say what it means that the base was quantised while the adapter was trained."""
    if is_trained_on_quantised(adapter):
        click.echo(
            "note: the adapter was trained over a quantised base, no quantization.json beside it says how, and it is "
            "merged into the full weights; the answers can differ slightly from those seen in training",
            err=True,
        )


def is_trained_on_quantised(adapter: Adapter) -> bool:
    """Whether the base that the adapter names is quantised, or the run that wrote it says `method: qlora`."""
    named = Path(adapter.config.get("base_model_name_or_path") or "") / "config.json"
    if named.is_file() and "quantization_config" in read_json(named):
        return True
    # The adapter is run/final, run/best/TASK or run/checkpoints/step-.../model; the run's config is a flat YAML file.
    run_dirs = list(adapter.adapter_dir.resolve().parents)[:3]
    configs = [run_dir / "config.yaml" for run_dir in run_dirs if (run_dir / "config.yaml").is_file()]
    return any(re.search(r"^method:\s*qlora\b", path.read_text("utf-8", "replace"), re.MULTILINE) for path in configs)


def _write_shards(plan: MergePlan, base: BaseModel, staging: Staging) -> None:
    from rich.console import Console
    from rich.progress import Progress

    headers = {name: shard_header(name, tensors, base) for name, tensors in plan.shards.items()}
    with Progress(console=Console(stderr=True), transient=True, disable=not sys.stderr.isatty()) as progress:
        task = progress.add_task("merging", total=sum(tensor.num_bytes for tensor in plan.tensors()))
        for name, tensors in plan.shards.items():
            if name in staging.finished:
                if is_finished(staging.model_dir / name, headers[name], tensors, staging.finished[name]):
                    progress.advance(task, sum(tensor.num_bytes for tensor in tensors))
                else:
                    del staging.finished[name]
        if staging.finished:
            click.echo(f"note: {len(staging.finished)} of {len(plan.shards)} shards were finished before", err=True)
        _check_space(plan, staging)
        left = [(name, tensors) for name, tensors in plan.shards.items() if name not in staging.finished]
        with ThreadPoolExecutor(1) as syncing:
            done: Future[None] | None = None  # of the shard before, which may still be on its way to the disk
            for name, tensors in left:
                path = staging.model_dir / name
                record = write_shard(path, headers[name], tensors, lambda size: progress.advance(task, size), syncing)
                if done:
                    done.result()
                done = syncing.submit(lambda name=name, record=record: staging.record(name, record.result()))
            if done:
                done.result()


def _check_space(plan: MergePlan, staging: Staging) -> None:
    """Refuse to begin what does not fit on the disk."""
    left = [tensors for name, tensors in plan.shards.items() if name not in staging.finished]
    for partial in staging.model_dir.glob("*.partial"):
        partial.unlink()
    wanted = sum(tensor.num_bytes for tensors in left for tensor in tensors) + OTHER_BYTES
    free = shutil.disk_usage(staging.directory).free
    if wanted > free:
        raise MergeError(
            f"the merged model needs {wanted / 1e9:.1f} GB and {free / 1e9:.1f} GB are free",
            where=os.fspath(staging.out_dir.parent),
            fix="free some or choose another OUT",
        )
