"""The weights in a checkpoint and in `final/`: an adapter, or a full model in files that different ranks write."""

from __future__ import annotations

import re
import shutil
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import orjson

from mft_train.checkpoint.model_config import with_old_keys
from mft_train.checkpoint.moments import on_host
from mft_train.checkpoint.tensor_file import write_tensors
from mft_train.errors import TrainError
from mft_train.model.initial_factors import as_difference, describe_difference
from mft_train.model.quantization import write_record

if TYPE_CHECKING:
    from pathlib import Path

    from torch import Tensor, nn

    from mft_train.engine.start import Engine

BASE_RECORD, BASE_RECORD_VERSION = "base_model.json", "1"
WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"
# A file of a full model; a host holds the files that its ranks write, once.
MAX_FILE_BYTES = 5 * 10**9


@dataclass(frozen=True, slots=True)
class Origin:
    """What a model was made from, as it travels with its weights."""

    tokenizer_dir: Path
    dataset_sha256: str  # of the manifest
    base_fingerprint: str | None  # of the base's tensors


def collect_weights(
    engine: Engine, model: nn.Module, *, is_copied: bool, max_file_bytes: int = MAX_FILE_BYTES
) -> dict[str, dict[str, Tensor]]:
    """The weights that this rank writes, whole and on the CPU, by file and name; all ranks call this together.

    Those are the trained ones of a model with an adapter, which rank 0 writes, else all but those tied to another,
    dealt to the ranks file by file. `is_copied` frees them from what later steps change. Raises TrainError for an empty
    one.
    """
    bare_model = engine.accelerator.unwrap_model(model)
    engine.share_again(model)
    everything = bare_model.state_dict()
    parameters = dict(bare_model.named_parameters())
    if hasattr(bare_model, "peft_config"):
        tensors = {name: tensor for name, tensor in parameters.items() if tensor.requires_grad}
        files = {"adapter": list(tensors)}
    else:
        ignored = set(getattr(bare_model, "_keys_to_ignore_on_save", None) or ())
        buffers = {name for name, _ in bare_model.named_buffers()} & everything.keys()
        tensors = parameters | {name: everything[name] for name in sorted(buffers - ignored)}
        files = named_files(tensors, max_file_bytes)
    accelerator = engine.accelerator
    own: dict[str, dict[str, Tensor]] = {}
    for index, (file, names) in enumerate(files.items()):
        is_own = index % accelerator.num_processes == accelerator.process_index
        for name in names:
            whole = engine.whole(tensors[name])
            if whole.numel() == 0:
                raise TrainError(f'parameter "{name}" is empty, the weights were not gathered')
            if is_own:
                own.setdefault(file, {})[name] = on_host(whole, is_copied=is_copied)
    return own


def named_files(tensors: dict[str, Any], max_bytes: int) -> dict[str, list[str]]:
    """The names of a full model's tensors by the file that they go to; a layer is never torn apart.

    transformers joins and splits weights within a layer only, as the experts of a mixture.
    """
    parts: dict[str, list[str]] = {}
    for name in tensors:
        layer = re.match(r".*?\.\d+\.", name)
        parts.setdefault(layer[0] if layer else name, []).append(name)
    files: list[list[str]] = [[]]
    size = 0
    for names in parts.values():
        part_size = sum(num_bytes(tensors[name]) for name in names)
        if files[-1] and size + part_size > max_bytes:
            files.append([])
            size = 0
        files[-1] += names
        size += part_size
    if len(files) == 1:
        return {WEIGHTS: files[0]}
    count = len(files)
    return {f"model-{index:05d}-of-{count:05d}.safetensors": names for index, names in enumerate(files, 1)}


def num_bytes(tensor: Any) -> int:
    """Bytes of a tensor when it is whole."""
    return getattr(tensor, "ds_numel", tensor.numel()) * tensor.element_size()


def write_description(model: Any, origin: Origin, target: Path) -> None:
    """Writes everything of a model directory but the weights: config, tokenizer, template, what it was made from."""
    if not hasattr(model, "peft_config"):
        model.save_pretrained(target, state_dict={})
        (target / WEIGHTS).unlink(missing_ok=True)  # some releases write one without tensors
        config = orjson.loads((target / "config.json").read_bytes())
        content = orjson.dumps(with_old_keys(config), option=orjson.OPT_INDENT_2 | orjson.OPT_APPEND_NEWLINE)
        (target / "config.json").write_bytes(content)
    else:
        target.mkdir(exist_ok=True)
        write_record(model, target)
        document = {"format_version": BASE_RECORD_VERSION, "fingerprint": origin.base_fingerprint}
        document |= {"dataset_sha256": origin.dataset_sha256}
        (target / BASE_RECORD).write_bytes(orjson.dumps(document, option=orjson.OPT_APPEND_NEWLINE))
    shutil.copytree(origin.tokenizer_dir, target, dirs_exist_ok=True)


def write_weights(model: Any, files: dict[str, dict[str, Tensor]], target: Path) -> None:
    """Writes what `collect_weights` gave this rank."""
    for file, tensors in files.items():
        if hasattr(model, "peft_config"):
            model.save_pretrained(target, state_dict=as_difference(model, tensors))
            describe_difference(model, target / "adapter_config.json")
            (target / "README.md").unlink(missing_ok=True)  # peft's empty model card
        else:
            write_tensors(target / file, as_published(model, tensors), {"format": "pt"})


def as_published(model: Any, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Weights of whole layers under the names, and in the parts, that files of this family have."""
    try:
        from transformers.core_model_loading import revert_weight_conversion
    except ImportError as error:  # transformers 4
        if getattr(model, "_checkpoint_conversion_mapping", None):
            raise TrainError("transformers 4 cannot save this model", fix='pip install "transformers>=5"') from error
        return tensors
    return revert_weight_conversion(model, tensors)


def write_index(target: Path) -> None:
    """Writes the index of a full model in several files, once all of them are there."""
    from safetensors import safe_open

    paths = sorted(target.glob("model-*-of-*.safetensors"))
    if not paths:
        return
    places = {}
    for path in paths:
        with safe_open(path, framework="pt") as file:
            places |= dict.fromkeys(file.keys(), path.name)
    total = sum(data_bytes(path) for path in paths)
    document = {"metadata": {"total_size": total}, "weight_map": dict(sorted(places.items()))}
    (target / INDEX).write_bytes(orjson.dumps(document, option=orjson.OPT_INDENT_2 | orjson.OPT_APPEND_NEWLINE))


def data_bytes(path: Path) -> int:
    """Bytes of the tensors in a file, without its header."""
    with path.open("rb") as file:
        header = int.from_bytes(file.read(8), "little")
    return path.stat().st_size - 8 - header
