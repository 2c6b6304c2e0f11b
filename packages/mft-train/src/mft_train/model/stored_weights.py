"""Weights where they lie in a model's files, for ranks that each read only their share."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from mft_train.config.adapter_config import BASE_CHANGING_INITS
from mft_train.errors import TrainError
from mft_train.model.base_weights import model_dir, stored_tensors, weight_names

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn
    from transformers import PreTrainedModel

    from mft_train.config.config import RunConfig

SOURCE = "stored_weight"  # the attribute of a weight that has no values yet


@dataclass(frozen=True, slots=True)
class StoredWeight:
    """A tensor in a safetensors file."""

    path: Path
    name: str

    def read(self, numbers: range) -> Tensor:
        """Some of its numbers, laid flat, in the type of the file; only the rows that hold them are read."""
        from safetensors import safe_open

        with safe_open(self.path, framework="pt") as file:
            stored = file.get_slice(self.name)
            shape = stored.get_shape()
            if not shape:
                return file.get_tensor(self.name).view(1)[numbers.start : numbers.stop]
            row = math.prod(shape[1:])
            first = numbers.start // row
            rows = stored[first : math.ceil(numbers.stop / row)]
        return rows.flatten()[numbers.start - first * row : numbers.stop - first * row]

    def fill(self, target: Tensor, numbers: range) -> None:
        """Gives a tensor the values of so many numbers, in its own type."""
        import torch

        if numbers:
            with torch.no_grad():
                target.copy_(self.read(numbers).view(target.shape))


def find_stored(model: PreTrainedModel, config: RunConfig, source: str) -> dict[str, StoredWeight]:
    """Where every weight and every saved buffer of a base model lies, by name; nothing if a rank cannot read its share.

    It can where safetensors files hold each under its own name and in its own shape, and nothing is computed from the
    base's values before training. A weight under two names must be there once: else both may be weights of their own.
    """
    if is_computed_from(config) or config.trust_remote_code or is_converted(model):
        return {}
    files = shapes_in_files(source)
    found: dict[str, StoredWeight] = {}
    for kept in tensors_by_identity(model):
        places = [(name, *files[name]) for name in kept.names if name in files]
        if len(places) != 1 or places[0][1] != list(kept.tensor.shape):
            return {}
        found[kept.names[0]] = StoredWeight(places[0][2], places[0][0])
    return found


@dataclass(frozen=True, slots=True)
class Named:
    """A tensor of a model and all its names."""

    tensor: Tensor
    names: list[str]


def tensors_by_identity(model: nn.Module) -> list[Named]:
    """The weights and saved buffers of a model, each once."""
    found: dict[int, Named] = {}
    for name, tensor in model.state_dict(keep_vars=True).items():
        found.setdefault(id(tensor), Named(tensor, [])).names.append(name)
    return list(found.values())


def is_computed_from(config: RunConfig) -> bool:
    """Whether what is trained begins as something computed or copied from the base's values."""
    lora = config.lora
    return config.method != "full" and (lora.dora or bool(lora.modules_to_save) or lora.init in BASE_CHANGING_INITS)


def is_converted(model: PreTrainedModel) -> bool:
    """Whether transformers makes the weights of this family from others in its files, as far as can be known."""
    if getattr(model.config, "quantization_config", None) is not None:
        return True
    try:
        from transformers.conversion_mapping import get_model_conversion_mapping
    except ImportError:  # transformers 4
        return bool(getattr(model, "_checkpoint_conversion_mapping", None))
    return bool(get_model_conversion_mapping(model, add_legacy=False))


def shapes_in_files(source: str) -> dict[str, tuple[list[int], Path]]:
    """Shape and file of every tensor of a model by name; nothing if they are not in safetensors files here."""
    try:
        directory = model_dir(source)
        names = weight_names(directory)
        if not all(name.endswith(".safetensors") for name in names):
            return {}
        tensors = [tensor for name in names for tensor in stored_tensors(directory / name)]
    except (OSError, TrainError):
        return {}
    return {name: (shape, path) for name, _, shape, path, _, _ in tensors}


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


def exact_dtype(model: PreTrainedModel, name: str, dtype: torch.dtype) -> torch.dtype:
    """The type in which transformers loads a weight: some families keep a few in float32."""
    import torch

    if dtype not in (torch.float16, torch.bfloat16):
        return dtype
    kept = getattr(model, "_keep_in_fp32_modules_strict", None) or ()
    return torch.float32 if any(part in name for part in kept) else dtype
