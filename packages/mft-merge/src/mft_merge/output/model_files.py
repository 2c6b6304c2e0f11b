"""All files of the merged model but its weights: index, configs, tokenizer, the record of the merge, the model card."""

import shutil
from math import prod
from pathlib import Path
from typing import Any

import click

from mft_merge.files.json_file import read_json, write_json
from mft_merge.output.model_config import with_old_keys
from mft_merge.output.tokenizer_files import stop_token_id, tokenizer_paths, with_old_tokenizer_keys, with_stop_token
from mft_merge.planning.plan import MergePlan
from mft_merge.sources.base_model import INDEX_NAME, SINGLE_NAME, BaseModel


def write_index(plan: MergePlan, base: BaseModel, out_dir: Path) -> None:
    """The shard index with the new tensors and sizes; the base's own file where nothing of it changes."""
    if set(plan.shards) == {SINGLE_NAME}:
        return
    weight_map = {tensor.name: name for name, tensors in plan.shards.items() for tensor in tensors}
    old = base.index or {}
    metadata = dict(old.get("metadata") or {})
    metadata["total_size"] = sum(tensor.num_bytes for tensor in plan.tensors())
    if "total_parameters" in metadata:
        metadata["total_parameters"] = sum(prod(tensor.source.shape) for tensor in plan.tensors())
    index = old | {"metadata": metadata, "weight_map": dict(sorted(weight_map.items()))}
    _copy_or_write(base.base_dir / INDEX_NAME, old, index, out_dir)


def write_configs(plan: MergePlan, adapter_dir: Path, base: BaseModel, out_dir: Path, dtype: str) -> None:
    """The configs and the tokenizer; the tokenizer's EOS is made to stop generation."""
    for name, path in tokenizer_paths(adapter_dir, base.base_dir).items():
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
