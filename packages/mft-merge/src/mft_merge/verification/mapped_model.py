"""A model with its weights in a file that is mapped into memory, of which the kernel keeps what there is room for."""

import contextlib
import os
import shutil
from collections.abc import Iterator
from math import prod
from pathlib import Path
from typing import Any

from mft_merge.errors import MergeError
from mft_merge.files.allocator import give_back_freed_blocks
from mft_merge.files.tensor_file import ITEM_BYTES, StoredTensor, num_rows, read_rows
from mft_merge.sources.base_model import BaseModel, read_base_model
from mft_merge.sources.live_model import LiveModel, Place, model_class, read_live_model

# What is read at a time, and how much is written until the disk has it.
PIECE_BYTES, SYNCED_BYTES = 1 << 22, 1 << 28
FLOAT32_BYTES = 4


def mapped_model(model_dir: Path, path: Path) -> Any:
    """The model in float32, its weights in the new file at `path`, which is needed as long as the model.

    A weight is a tensor in memory to all who use it, PEFT too; its pages come from the file when they are read, and go
    when memory runs short.
    """
    import torch

    give_back_freed_blocks()
    base = read_base_model(model_dir)
    live = read_live_model(base)
    config, made = model_class(base)
    with _parameters_without_values():
        model = made._from_config(config, dtype=torch.float32)
    model.load_state_dict(_mapped_weights(base, live, path), strict=False, assign=True)
    model.tie_weights()
    empty = [name for name, tensor in model.state_dict().items() if tensor.is_meta]
    if empty:
        raise MergeError(f'no stored tensor is the weight "{empty[0]}"', where=str(model_dir))
    return model


@contextlib.contextmanager
def _parameters_without_values() -> Iterator[None]:
    """Modules that are made within keep the values of their buffers, and only the shapes of their parameters."""
    from torch import nn
    from torch.nn import Parameter

    modules: Any = nn.Module
    register = modules.register_parameter

    def register_shape(module: nn.Module, name: str, parameter: Parameter | None) -> None:
        register(module, name, parameter)
        if parameter is not None:
            module._parameters[name] = Parameter(parameter.to("meta"), requires_grad=False)

    modules.register_parameter = register_shape
    try:
        yield
    finally:
        modules.register_parameter = register


def _mapped_weights(base: BaseModel, live: LiveModel, path: Path) -> dict[str, Any]:
    """All parameters that stored tensors are parts of, by name."""
    import torch

    places = {name: place for name, place in live.places.items() if name in base.tensors}
    names = dict.fromkeys(place.parameter for place in places.values())
    sizes = {name: prod(live.shapes[name]) for name in names}
    wanted, free = FLOAT32_BYTES * sum(sizes.values()), shutil.disk_usage(path.parent).free
    if wanted > free:
        raise MergeError(
            f"--verify needs {wanted / 1e9:.1f} GB of disk for a model that does not fit into memory, and "
            f"{free / 1e9:.1f} GB are free",
            where=str(path.parent),
            fix="leave it out, or choose another OUT",
        )
    whole = torch.from_file(str(path), shared=True, size=max(1, sum(sizes.values())), dtype=torch.float32)
    weights, start = {}, 0
    for name, size in sizes.items():
        weights[name] = whole[start : start + size].view(live.shapes[name])
        start += size
    unsynced = 0
    with path.open("rb") as stream:
        for name, place in places.items():
            _fill(weights[place.parameter], place, base.tensors[name])
            unsynced += FLOAT32_BYTES * prod(place.shape)
            if unsynced > SYNCED_BYTES:
                os.fsync(stream.fileno())  # pages that the disk has can be given up
                unsynced = 0
    return weights


def _fill(weight: Any, place: Place, source: StoredTensor) -> None:
    """Puts a stored tensor into its place in a weight, piece by piece."""
    import torch

    target = torch.as_strided(weight, place.shape, place.strides, weight.storage_offset() + place.offset)
    target = target if place.shape else target[None]
    step = max(1, PIECE_BYTES // ITEM_BYTES[source.dtype] * num_rows(source) // max(1, prod(place.shape)))
    for start in range(0, num_rows(source), step):
        rows = read_rows(source, start, min(num_rows(source), start + step))
        target[start : start + len(rows)] = rows.float()
