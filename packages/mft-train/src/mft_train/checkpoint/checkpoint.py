"""Checkpoints that appear whole or not at all: weights in `model/`, everything else that a resume needs in `state/`."""

from __future__ import annotations

import contextlib
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

import orjson

from mft_train.checkpoint.fingerprint import forgets_balance, forgets_validations
from mft_train.checkpoint.moments import collect_moments, load_moments, write_moments
from mft_train.checkpoint.random_state import random_state, restore_random_state
from mft_train.checkpoint.validation_record import ValidationRecord
from mft_train.checkpoint.weights import Origin, collect_weights, write_description, write_index, write_weights
from mft_train.errors import TrainError, first_line, is_out_of_memory
from mft_train.model.initial_factors import give_back
from mft_train.rows.row_stream import StreamPosition

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from collections.abc import Set as AbstractSet
    from pathlib import Path

    import torch
    from torch import nn

    from mft_train.checkpoint.writer import CheckpointWriter
    from mft_train.engine.start import Engine

FORMAT_VERSION = "3"


@dataclass(frozen=True, slots=True)
class RunState:
    """Where a run stands after `global_step` optimizer steps."""

    global_step: int
    position: StreamPosition
    balance: dict[str, Any] | None = None  # as `TaskBalance.to_json` gives it
    validation: ValidationRecord = field(default_factory=ValidationRecord)


def step_dir(run_dir: Path, global_step: int) -> Path:
    """The directory of the checkpoint after `global_step` optimizer steps."""
    return run_dir / "checkpoints" / step_name(global_step)


def step_name(global_step: int) -> str:
    """The name of the checkpoint after `global_step` optimizer steps."""
    return f"step-{global_step:08d}"


def save_model(writer: CheckpointWriter, engine: Engine, model: nn.Module, origin: Origin, target: Path) -> None:
    """Writes an adapter or a full model with its tokenizer and chat template; `target` appears by one rename.

    All ranks call this together, and it returns when all is written.
    """
    bare_model = engine.accelerator.unwrap_model(model)
    files = collect_weights(engine, model, is_copied=False)
    writer.write(
        target,
        begin=lambda staging: write_description(bare_model, origin, staging),
        write_part=lambda staging: write_weights(bare_model, files, staging),
        complete=write_index,
    )
    writer.wait()


def save_checkpoint(
    writer: CheckpointWriter,
    engine: Engine,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    state: RunState,
    fingerprint: dict[str, Any],
    origin: Origin,
    target: Path,
    after: Callable[[], None],
) -> None:
    """Writes a checkpoint from all ranks together; `after` it is there, by one rename, once every rank has written.

    What is written is what holds now, whether or not the writing goes on in the background.
    """
    import torch

    writer.wait()  # or two copies would be in memory
    bare_model, rank = engine.accelerator.unwrap_model(model), engine.accelerator.process_index
    files = collect_weights(engine, model, is_copied=writer.is_background)
    moments = collect_moments(engine, model, optimizer, is_copied=writer.is_background)
    generators = random_state()

    def begin(staging: Path) -> None:
        (staging / "state").mkdir()
        write_description(bare_model, origin, staging / "model")

    def write_part(staging: Path) -> None:
        write_weights(bare_model, files, staging / "model")
        write_moments(moments, staging / "state" / f"optimizer-{rank:04d}.safetensors")
        torch.save(generators, staging / "state" / f"random-{rank:04d}.pt")

    def complete(staging: Path) -> None:
        write_index(staging / "model")
        sizes = {str(p.relative_to(staging)): p.stat().st_size for p in sorted(staging.rglob("*")) if p.is_file()}
        document = {"format_version": FORMAT_VERSION, **asdict(state), "fingerprint": fingerprint, "files": sizes}
        (staging / "state" / "run.json").write_bytes(orjson.dumps(document, option=orjson.OPT_INDENT_2))

    writer.write(target, begin, write_part, complete, after)


def read_run(checkpoint: Path) -> dict[str, Any]:
    """What `state/run.json` of a whole checkpoint says."""
    return orjson.loads((checkpoint / "state" / "run.json").read_bytes())


def load_checkpoint(
    engine: Engine, model: nn.Module, optimizer: torch.optim.Optimizer, checkpoint: Path, changed: AbstractSet[str]
) -> RunState:
    """Restores the optimizer and the random state; raises TrainError if that cannot be.

    The model has its weights already. What has no meaning after the `changed` settings begins anew: the moments of
    another optimizer, the memory of another balancer or with other tasks, and with other data the validations'.
    """
    document = read_run(checkpoint)
    own_state = checkpoint / "state" / f"random-{engine.accelerator.process_index:04d}.pt"
    with reading(checkpoint):
        if "optimizer" not in changed:
            load_moments(engine, model, optimizer, checkpoint / "state")
        if own_state.is_file():
            restore_random_state(load_tensors(own_state))
    return RunState(
        document["global_step"],
        StreamPosition(**document["position"]),
        None if forgets_balance(changed) else document["balance"],
        ValidationRecord() if forgets_validations(changed) else ValidationRecord.from_json(document["validation"]),
    )


@contextlib.contextmanager
def reading(checkpoint: Path) -> Iterator[None]:
    """Turns what damaged files raise into a TrainError."""
    from pickle import UnpicklingError

    from safetensors import SafetensorError

    try:
        yield
    except (OSError, RuntimeError, ValueError, KeyError, EOFError, SafetensorError, UnpicklingError) as error:
        if is_out_of_memory(error):
            raise
        raise TrainError(
            f"the checkpoint cannot be loaded: {first_line(error)}",
            where=str(checkpoint),
            fix="its files are damaged: move it away to resume from the one before",
        ) from error


def load_tensors(path: Path) -> Any:
    """What torch.save wrote, on the CPU."""
    import torch

    return torch.load(path, map_location="cpu", weights_only=True)


def load_adapter(model: nn.Module, directory: Path, init: str = "kaiming") -> bool:
    """Copies a saved adapter into the model's, if there is one; raises TrainError unless every tensor fits.

    `init` is how it began: with some, the base loses what the adapter began with.
    """
    from safetensors.torch import load_file

    path = directory / "adapter_model.safetensors"
    if not path.is_file():
        return False
    from peft import get_peft_model_state_dict, set_peft_model_state_dict

    with reading(directory.parent):
        saved = give_back(model, load_file(path), init)
    own = get_peft_model_state_dict(model)
    for name in sorted(saved.keys() | own.keys()):
        if name not in own or name not in saved or saved[name].shape != own[name].shape:
            there, here = (shape_of(tensors.get(name)) for tensors in (saved, own))
            raise TrainError(
                f'the adapter does not fit: "{name}" is {there} there and {here} in this run',
                where=str(path),
                fix="resume with the settings of the first start",
            )
    set_peft_model_state_dict(model, saved)
    return True


def shape_of(tensor: torch.Tensor | None) -> str:
    """A tensor's shape in words."""
    return "missing" if tensor is None else f"of shape {tuple(tensor.shape)}"
