"""The merge: reads an adapter and its base, writes the merged model directory, publishes it by one rename."""

import os
import re
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from math import prod
from pathlib import Path
from typing import Any

import click

from mft_merge.adapter import Adapter, read_adapter
from mft_merge.base_model import INDEX_NAME, BaseModel, read_base_model
from mft_merge.changes import stored_changes
from mft_merge.errors import MergeError
from mft_merge.json_file import read_json, write_json
from mft_merge.merged_values import merged_tiles
from mft_merge.model_config import with_old_keys
from mft_merge.plan import MergePlan, OutputTensor, make_plan
from mft_merge.tensor_file import FLOAT_TYPES, TensorFile, make_header, payload_chunks, write_values
from mft_merge.tokenizer_files import stop_token_id, tokenizer_paths, with_old_tokenizer_keys, with_stop_token


def merge(adapter_dir: Path, out_dir: Path, *, base_dir: Path | None, dtype: str, overwrite: bool) -> None:
    """Write to `out_dir` the model that the adapter in `adapter_dir` makes of its base.

    `base_dir` stands in for the base that the adapter names; `dtype` is "keep" or torch's name of a float type.
    """
    if not adapter_dir.is_dir():
        raise MergeError(f"there is no adapter directory {adapter_dir}")
    adapter = read_adapter(adapter_dir)
    base = read_base_model(base_dir or _named_base(adapter))
    _check_out(out_dir, (adapter_dir, base.base_dir), overwrite)
    code = next((code for code, name in FLOAT_TYPES.items() if name == dtype), "keep")
    plan = make_plan(stored_changes(adapter, base), base, adapter.config, code)
    _note_quantised_training(adapter)
    if plan.config_changes.get("tie_word_embeddings") is False:
        click.echo("note: input and output embeddings now differ, so the merged model does not tie them", err=True)
    with _published(out_dir) as partial_dir:
        _write_shards(plan, base, partial_dir)
        _write_index(plan, base, partial_dir)
        _write_configs(plan, adapter, base, partial_dir, dtype)


def _named_base(adapter: Adapter) -> Path:
    name = adapter.config.get("base_model_name_or_path")
    if not name or not Path(name).is_dir():
        raise MergeError(
            f'the base model "{name}" that the adapter names is no directory here',
            where=str(adapter.adapter_dir / "adapter_config.json"),
            fix="name its directory with --base DIR",
        )
    return Path(name)


def _check_out(out_dir: Path, inputs: tuple[Path, ...], overwrite: bool) -> None:
    out = out_dir.resolve()
    for path in inputs:
        if out == path.resolve() or out in path.resolve().parents:
            raise MergeError(f"the output {out_dir} is or holds the input {path}", fix="choose another OUT")
    if out_dir.exists() and not out_dir.is_dir():
        raise MergeError(f"{out_dir} is a file", fix="choose another OUT")
    if out_dir.is_dir() and any(out_dir.iterdir()):
        if not overwrite:
            raise MergeError(f"{out_dir} is not empty", fix="choose another OUT or use --overwrite")
        if not (out_dir / "config.json").is_file():
            raise MergeError(f"{out_dir} holds something other than a model and is not replaced")


def _note_quantised_training(adapter: Adapter) -> None:
    """Say what it means that the base was quantised while the adapter was trained."""
    if is_trained_on_quantised(adapter):
        click.echo(
            "note: the adapter was trained over a quantised base and is merged into the full weights; "
            "the answers can differ slightly from those seen in training",
            err=True,
        )


def is_trained_on_quantised(adapter: Adapter) -> bool:
    """Whether the base that the adapter names is quantised, or the run that wrote it says `method: qlora`."""
    named = Path(adapter.config.get("base_model_name_or_path") or "") / "config.json"
    if named.is_file() and "quantization_config" in read_json(named):
        return True
    # The adapter is run/final or run/checkpoints/step-.../model; the config of the run is a flat YAML file.
    run_dirs = list(adapter.adapter_dir.resolve().parents)[:3:2]
    configs = [run_dir / "config.yaml" for run_dir in run_dirs if (run_dir / "config.yaml").is_file()]
    return any(re.search(r"^method:\s*qlora\b", path.read_text("utf-8", "replace"), re.MULTILINE) for path in configs)


@contextmanager
def _published(out_dir: Path) -> Iterator[Path]:
    """A directory beside `out_dir` that takes its place if the block succeeds and vanishes if not."""
    out_dir.parent.mkdir(parents=True, exist_ok=True)
    partial_dir = out_dir.parent / f".{out_dir.name}.partial-{os.getpid()}"
    partial_dir.mkdir()
    try:
        yield partial_dir
        _sync(partial_dir)
        old_dir = out_dir.parent / f".{out_dir.name}.old-{os.getpid()}"
        if out_dir.exists():
            out_dir.rename(old_dir)
        partial_dir.replace(out_dir)
        shutil.rmtree(old_dir, ignore_errors=True)
    except BaseException:
        shutil.rmtree(partial_dir, ignore_errors=True)
        raise


def _sync(directory: Path) -> None:
    for path in (*sorted(directory.rglob("*")), directory):
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def _write_shards(plan: MergePlan, base: BaseModel, out_dir: Path) -> None:
    from rich.console import Console
    from rich.progress import Progress

    total = sum(tensor.num_bytes for tensor in plan.tensors())
    console = Console(stderr=True)
    with Progress(console=console, transient=True, disable=not sys.stderr.isatty()) as progress:
        task = progress.add_task("merging", total=total)
        for shard in base.shards:
            tensors = plan.shards[shard.path.name]
            with (out_dir / shard.path.name).open("xb") as stream:
                header = _header(shard, tensors)
                stream.write(len(header).to_bytes(8, "little") + header)
                for tensor in tensors:
                    if tensor.is_copy:
                        for chunk in payload_chunks(tensor.source):
                            stream.write(chunk)
                    else:
                        for tile in merged_tiles(tensor):
                            write_values(stream, tile)
                    progress.advance(task, tensor.num_bytes)


def _header(shard: TensorFile, tensors: list[OutputTensor]) -> bytes:
    """The header of an output shard; the base's own bytes where the layout is the base's."""
    layout = [(tensor.name, tensor.dtype, tensor.source.shape) for tensor in tensors]
    if layout == [(tensor.name, tensor.dtype, tensor.shape) for tensor in shard.tensors.values()]:
        return shard.header
    sizes = [tensor.num_bytes for tensor in tensors]
    return make_header([(*entry, size) for entry, size in zip(layout, sizes, strict=True)], shard.metadata)


def _write_index(plan: MergePlan, base: BaseModel, out_dir: Path) -> None:
    """The shard index with the new tensors and sizes; the base's own file where nothing of it changes."""
    if base.index is None:
        return
    weight_map = {tensor.name: name for name, tensors in plan.shards.items() for tensor in tensors}
    metadata = dict(base.index.get("metadata") or {})
    metadata["total_size"] = sum(tensor.num_bytes for tensor in plan.tensors())
    if "total_parameters" in metadata:
        metadata["total_parameters"] = sum(prod(tensor.source.shape) for tensor in plan.tensors())
    index = base.index | {"metadata": metadata, "weight_map": dict(sorted(weight_map.items()))}
    _copy_or_write(base.base_dir / INDEX_NAME, base.index, index, out_dir)


def _write_configs(plan: MergePlan, adapter: Adapter, base: BaseModel, out_dir: Path, dtype: str) -> None:
    """The configs and the tokenizer; the tokenizer's EOS is made to stop generation."""
    for name, path in tokenizer_paths(adapter.adapter_dir, base.base_dir).items():
        (out_dir / name).parent.mkdir(exist_ok=True)
        if name == "tokenizer_config.json":
            tokenizer_config = read_json(path)
            _copy_or_write(path, tokenizer_config, with_old_tokenizer_keys(tokenizer_config), out_dir)
        else:
            shutil.copyfile(path, out_dir / name)
    stop_id = stop_token_id(out_dir)
    if stop_id is None:
        click.echo(
            "note: the tokenizer names no EOS token that its files resolve; eos_token_id is the base's", err=True
        )
    config = with_old_keys(base.config) | plan.config_changes
    if dtype != "keep":
        config |= dict.fromkeys(("dtype", "torch_dtype"), dtype)
    _write_config("config.json", config, stop_id, base, out_dir)
    if (base.base_dir / "generation_config.json").is_file():
        generation_config = read_json(base.base_dir / "generation_config.json")
        _write_config("generation_config.json", generation_config, stop_id, base, out_dir)
    for path in sorted(base.base_dir.glob("*.py")):
        shutil.copyfile(path, out_dir / path.name)


def _write_config(name: str, config: dict[str, Any], stop_id: int | None, base: BaseModel, out_dir: Path) -> None:
    config = config if stop_id is None else with_stop_token(config, stop_id)
    _copy_or_write(base.base_dir / name, read_json(base.base_dir / name), config, out_dir)


def _copy_or_write(source: Path, old: dict[str, Any], new: dict[str, Any], out_dir: Path) -> None:
    if new == old:
        shutil.copyfile(source, out_dir / source.name)
    else:
        write_json(out_dir / source.name, new)
