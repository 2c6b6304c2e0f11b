"""Weights where they lie in a model's files, for ranks that each read only their share."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from mft_train.config.adapter_config import BASE_CHANGING_INITS
from mft_train.errors import TrainError
from mft_train.model.base_weights import STORED_TYPES, model_dir, model_tensors
from mft_train.model.stored_names import stored_names

if TYPE_CHECKING:
    from pathlib import Path

    import torch
    from torch import Tensor, nn
    from transformers import PreTrainedModel

    from mft_train.config.config import RunConfig

SOURCE = "stored_weight"  # the attribute of a weight that has no values yet
MOST_NUMBERS = 1 << 20  # read at a time


@dataclass(frozen=True, slots=True)
class StoredTensor:
    """Numbers in a file, one after the other."""

    path: Path
    offset: int  # bytes
    dtype: torch.dtype
    shape: tuple[int, ...]

    def read(self, first: int, flat: Tensor) -> None:
        """Fills a flat tensor with those from `first` on, in its own type; raises TrainError."""
        import torch

        with self.path.open("rb") as file:
            file.seek(self.offset + first * self.dtype.itemsize)
            for piece in flat.split(MOST_NUMBERS):
                content = bytearray(len(piece) * self.dtype.itemsize)
                if file.readinto(content) != len(content):
                    raise TrainError("the file of weights is cut short", where=str(self.path))
                piece.copy_(torch.frombuffer(content, dtype=self.dtype))


@dataclass(frozen=True, slots=True)
class StoredWeight:
    """A weight as tensors in files: laid flat, it is these laid flat, one after the other."""

    parts: tuple[StoredTensor, ...]

    def fill(self, target: Tensor, numbers: range) -> None:
        """Gives a tensor the values of so many numbers of the weight, in its own type; raises TrainError."""
        import torch

        flat, begin = target.view(-1), 0
        with torch.no_grad():
            for part in self.parts:
                end = begin + math.prod(part.shape)
                first, last = max(begin, numbers.start), min(end, numbers.stop)
                if first < last:
                    part.read(first - begin, flat[first - numbers.start : last - numbers.start])
                begin = end


def find_stored(model: PreTrainedModel, config: RunConfig, source: str) -> dict[str, StoredWeight]:
    """Where every weight and every saved buffer of a base model lies, by name; nothing if a rank cannot read its share.

    It can where safetensors files hold each as one tensor, or as tensors that follow each other, and nothing is
    computed from the base's values before training. A weight under two names must be there once: else both may be
    weights of their own.
    """
    is_quantized = getattr(model.config, "quantization_config", None) is not None
    if is_computed_from(config) or config.trust_remote_code or is_quantized:
        return {}
    files = tensors_in_files(source)
    names = stored_names(model, files)
    if not names:
        return {}
    found: dict[str, StoredWeight] = {}
    for own_names, tensor in tensors_by_identity(model):
        places = [name for name in own_names if name in names]
        if len(places) != 1:
            return {}
        parts = tuple(files[name] for name in names[places[0]])
        if not is_of(parts, tuple(tensor.shape)):
            return {}
        found[own_names[0]] = StoredWeight(parts)
    return found


def is_of(parts: tuple[StoredTensor, ...], shape: tuple[int, ...]) -> bool:
    """Whether tensors can be a weight of this shape: one alike, or several with rows of its length that fill it."""
    if len(parts) == 1:
        return parts[0].shape == shape
    return all(part.shape[-1:] == shape[-1:] for part in parts) and math.prod(shape) == sum(
        math.prod(part.shape) for part in parts
    )


def tensors_by_identity(model: nn.Module) -> list[tuple[list[str], Tensor]]:
    """The weights and saved buffers of a model, each once, with all its names."""
    found: dict[int, tuple[list[str], Tensor]] = {}
    for name, tensor in model.state_dict(keep_vars=True).items():
        found.setdefault(id(tensor), ([], tensor))[0].append(name)
    return list(found.values())


def is_computed_from(config: RunConfig) -> bool:
    """Whether what is trained begins as something computed or copied from the base's values."""
    lora = config.lora
    return config.method != "full" and (lora.dora or bool(lora.modules_to_save) or lora.init in BASE_CHANGING_INITS)


def tensors_in_files(source: str) -> dict[str, StoredTensor]:
    """Every tensor of a model by its name in the files; nothing unless these are whole safetensors of floats."""
    import torch

    try:
        tensors = model_tensors(model_dir(source)) or []
        sizes = {path: path.stat().st_size for path in {path for *_, path, _, _ in tensors}}
    except (OSError, TrainError):
        return {}
    is_whole = all(offset + size <= sizes[path] for *_, path, offset, size in tensors)
    if not is_whole or not all(dtype in STORED_TYPES for _, dtype, *_ in tensors):
        return {}
    return {
        name: StoredTensor(path, offset, getattr(torch, STORED_TYPES[dtype]), tuple(shape))
        for name, dtype, shape, path, offset, _ in tensors
    }


def set_sources(model: PreTrainedModel, found: dict[str, StoredWeight]) -> None:
    """Lets each weight know where it lies, and gives the buffers their values."""
    parameters = dict(model.named_parameters())
    for name, stored in found.items():
        if name in parameters:
            setattr(parameters[name], SOURCE, stored)
        else:
            buffer = model.get_buffer(name)
            stored.fill(buffer, range(buffer.numel()))


def source_of(weight: Tensor) -> StoredWeight | None:
    """Where the values of a weight are to be read, None if they come from rank 0."""
    return getattr(weight, SOURCE, None)


def has_sources(model: nn.Module) -> bool:
    """Whether the weights of a model are to be read by each rank."""
    return any(source_of(weight) for weight in model.parameters())


def forget_sources(model: nn.Module) -> None:
    """Leaves all values to rank 0."""
    for weight in model.parameters():
        if source_of(weight):
            delattr(weight, SOURCE)
