"""The optimizer's state in a checkpoint: each rank writes ranges of flat tensors, and reads those that it needs.

So the same files serve every engine and any number of ranks.
"""

from __future__ import annotations

from collections import Counter
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import orjson

from mft_train.checkpoint.tensor_file import write_tensors

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

    from torch import Tensor, nn

    from mft_train.engine.start import Engine

FILES = "optimizer-*.safetensors"


@dataclass(slots=True)
class Moments:
    """What one rank writes: tensors by "parameter:state", where a range begins in its flat tensor, plain numbers."""

    tensors: dict[str, Tensor] = field(default_factory=dict)
    starts: dict[str, int] = field(default_factory=dict)
    numbers: dict[str, int] = field(default_factory=dict)


def collect_moments(engine: Engine, model: nn.Module, optimizer: Any, *, is_copied: bool) -> Moments:
    """This rank's part of the optimizer's state, on the CPU; `is_copied` frees it from what later steps change."""
    part = Moments()
    for name, parameter in trained_parameters(engine, model).items():
        held, written = engine.held(parameter), engine.written(parameter)
        if not written:
            continue
        for key, value in engine.moments(optimizer, parameter).items():
            entry = f"{name}:{key}"
            if hasattr(value, "shape") and value.shape == (len(held),):
                part.tensors[entry] = on_host(
                    value[written.start - held.start : written.stop - held.start], is_copied=is_copied
                )
                part.starts[entry] = written.start
            elif written.start > 0:
                continue  # what a parameter has once comes from the rank that has its beginning
            elif hasattr(value, "shape"):
                part.tensors[entry] = on_host(value, is_copied=is_copied)
            else:
                part.numbers[entry] = value
    return part


def trained_parameters(engine: Engine, model: nn.Module) -> dict[str, nn.Parameter]:
    """The parameters that the optimizer changes, by name."""
    bare_model = engine.accelerator.unwrap_model(model)
    engine.share_again(model)
    return {name: parameter for name, parameter in bare_model.named_parameters() if parameter.requires_grad}


def on_host(tensor: Tensor, *, is_copied: bool) -> Tensor:
    """A tensor on the CPU; without `is_copied` it may share the memory of the one given."""
    import torch

    if is_copied and tensor.device.type == "cuda":
        # Memory that the system may not move is what a GPU copies into at full speed; torch keeps it for the next copy.
        host = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True).copy_(tensor.detach(), non_blocking=True)
    else:
        host = tensor.detach().to("cpu", copy=is_copied)
    if tensor.device.type == "cuda":
        torch.cuda.current_stream().synchronize()
    return host


def write_moments(part: Moments, path: Path) -> None:
    """Writes one rank's part."""
    texts = {"starts": orjson.dumps(part.starts).decode(), "numbers": orjson.dumps(part.numbers).decode()}
    write_tensors(path, part.tensors, texts)


def load_moments(engine: Engine, model: nn.Module, optimizer: Any, directory: Path) -> None:
    """Gives the optimizer the state that is in `directory`; raises ValueError if a part of it is missing."""
    parameters = trained_parameters(engine, model)
    read = read_moments(directory, {name: engine.held(parameter) for name, parameter in parameters.items()})
    engine.restore(optimizer, {parameters[name]: state for name, state in read.items()})


def read_moments(directory: Path, extents: Mapping[str, range]) -> dict[str, dict[str, Any]]:
    """The state of every parameter, of its flat tensors the numbers in its extent; raises ValueError."""
    import torch
    from safetensors import safe_open

    state: dict[str, dict[str, Any]] = {}
    filled: Counter[str] = Counter()
    with ExitStack() as stack:
        for path in sorted(directory.glob(FILES)):
            file: Any = stack.enter_context(safe_open(path, framework="pt"))
            texts = file.metadata()
            starts, numbers = orjson.loads(texts["starts"]), orjson.loads(texts["numbers"])
            for entry, name, key in split_entries([*file.keys(), *numbers]):
                if name not in extents:
                    raise ValueError(f'there is no parameter "{name}"')
                own = state.setdefault(name, {})
                if entry in numbers:
                    own[key] = numbers[entry]
                elif entry not in starts:
                    own[key] = file.get_tensor(entry)
                else:
                    values, start, extent = file.get_slice(entry), starts[entry], extents[name]
                    (size,) = values.get_shape()
                    first, last = max(start, extent.start), min(start + size, extent.stop)
                    if first < last:
                        found = values[first - start : last - start]
                        if key not in own:
                            own[key] = torch.empty(len(extent), dtype=found.dtype)
                        own[key][first - extent.start : last - extent.start] = found
                        filled[entry] += last - first
    for entry, name, _ in split_entries(filled):
        if filled[entry] != len(extents[name]):
            raise ValueError(f'of "{entry}" {filled[entry]} of {len(extents[name])} numbers are there')
    if missing := sorted(extents.keys() - state.keys()):
        raise ValueError(f'the state of "{missing[0]}" is missing')
    return state


def split_entries(entries: Any) -> Iterator[tuple[str, str, str]]:
    """Every entry with its parameter's name and the name of the state."""
    for entry in entries:
        name, _, key = entry.rpartition(":")
        yield entry, name, key
