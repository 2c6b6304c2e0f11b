"""The base model directory: its config and where each of its tensors lies."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mft_merge.errors import MergeError
from mft_merge.files.json_file import check_kinds, read_json
from mft_merge.files.tensor_file import StoredTensor, TensorFile, read_tensor_file

INDEX_NAME = "model.safetensors.index.json"
SINGLE_NAME = "model.safetensors"


@dataclass(frozen=True, slots=True)
class BaseModel:
    """`index` is the content of the shard index, or None where the model is one file."""

    base_dir: Path
    config: dict[str, Any]
    index: dict[str, Any] | None
    shards: tuple[TensorFile, ...]
    tensors: dict[str, StoredTensor]


def read_base_model(base_dir: Path) -> BaseModel:
    """The model in `base_dir`, without its payloads."""
    if not base_dir.is_dir():
        raise MergeError(f"there is no base model directory {base_dir}", fix="name it with --base DIR")
    config_path = base_dir / "config.json"
    if not config_path.is_file():
        raise MergeError("no config.json in the base model directory", where=str(base_dir))
    config = read_json(config_path)
    check_kinds(config, {"model_type": (str,)}, config_path)
    if "quantization_config" in config:
        raise MergeError(
            "the base model is quantised and an update cannot be added to its weights",
            where=str(base_dir),
            fix="name the unquantised model with --base DIR",
        )
    index_path = base_dir / INDEX_NAME
    if (base_dir / SINGLE_NAME).is_file():
        index, names = None, [SINGLE_NAME]
    elif index_path.is_file():
        index = read_json(index_path)
        names = _shard_names(index, index_path)
    else:
        raise MergeError(
            f"neither {SINGLE_NAME} nor {INDEX_NAME}", where=str(base_dir), fix="save the base as safetensors"
        )
    shards = tuple(read_tensor_file(base_dir / name) for name in names)
    tensors: dict[str, StoredTensor] = {}
    for shard in shards:
        tensors |= shard.tensors
    if index is not None:
        _check_index(index, index_path, shards)
    return BaseModel(base_dir, config, index, shards, tensors)


def _shard_names(index: dict[str, Any], path: Path) -> list[str]:
    weight_map = index.get("weight_map")
    check_kinds(index, {"metadata": (dict,)}, path)
    if not isinstance(weight_map, dict) or not weight_map:
        raise MergeError("no weight_map", where=str(path))
    check_kinds(weight_map, dict.fromkeys(weight_map, (str,)), path)
    names = sorted(set(weight_map.values()))
    for name in names:
        if Path(name).name != name:
            raise MergeError(f'shard "{name}" is not beside the index', where=str(path))
        if not (path.parent / name).is_file():
            raise MergeError(f'shard "{name}" is missing', where=str(path.parent))
    return names


def _check_index(index: dict[str, Any], path: Path, shards: tuple[TensorFile, ...]) -> None:
    stored = {name: shard.path.name for shard in shards for name in shard.tensors}
    for name in sorted(set(stored) ^ set(index["weight_map"])):
        raise MergeError(f'tensor "{name}" is in the index or in a shard, but not in both', where=str(path))
    for name, shard_name in index["weight_map"].items():
        if stored[name] != shard_name:
            raise MergeError(f'tensor "{name}" is in {stored[name]}, not where the index says', where=str(path))
