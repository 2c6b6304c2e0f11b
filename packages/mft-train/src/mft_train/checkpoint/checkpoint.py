"""Checkpoints that appear whole or not at all: weights in `model/`, everything else that a resume needs in `state/`."""

from __future__ import annotations

import contextlib
import shutil
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

import orjson

from mft_train.checkpoint.fingerprint import forgets_balance
from mft_train.checkpoint.model_config import with_old_keys
from mft_train.checkpoint.publish import publish
from mft_train.checkpoint.random_state import random_state, restore_random_state
from mft_train.checkpoint.validation_record import ValidationRecord
from mft_train.errors import TrainError, first_line, is_out_of_memory
from mft_train.model.quantization import write_record
from mft_train.rows.row_stream import StreamPosition

if TYPE_CHECKING:
    from collections.abc import Iterator
    from collections.abc import Set as AbstractSet
    from pathlib import Path

    import torch
    from torch import nn
    from transformers import PreTrainedModel

    from mft_train.engine.start import Engine

FORMAT_VERSION = "1"
BASE_RECORD = "base_model.json"


@dataclass(frozen=True, slots=True)
class RunState:
    """Where a run stands after `global_step` optimizer steps."""

    global_step: int
    position: StreamPosition
    balance: dict[str, Any] | None = None  # as `TaskBalance.to_json` gives it
    validation: ValidationRecord = field(default_factory=ValidationRecord)


def step_dir(run_dir: Path, global_step: int) -> Path:
    """The directory of the checkpoint after `global_step` optimizer steps."""
    return run_dir / "checkpoints" / f"step-{global_step:08d}"


@dataclass(frozen=True, slots=True)
class Origin:
    """What a model was made from, as it travels with its weights."""

    tokenizer_dir: Path
    dataset_sha256: str  # of the manifest
    base_fingerprint: str | None  # of the base's tensors


def save_model(engine: Engine, model: nn.Module, origin: Origin, target: Path) -> None:
    """Writes an adapter or a full model with its tokenizer and chat template; `target` appears by one rename.

    All ranks call this together; rank 0 writes.
    """
    weights = gathered_weights(engine, model)
    if engine.accelerator.is_main_process:
        staging = target.with_name(f".{target.name}.partial")
        shutil.rmtree(staging, ignore_errors=True)
        with writing(staging):
            write_model(engine.accelerator.unwrap_model(model), weights, origin, staging)
            publish(staging, target)
    engine.accelerator.wait_for_everyone()


def gathered_weights(engine: Engine, model: nn.Module) -> dict[str, torch.Tensor]:
    """Every weight that is saved, whole and on the CPU, by name; empty on all ranks but 0, which call this together.

    Those are the trained ones of a model with an adapter, else all. Weights that are tied share their memory.
    """
    bare_model = engine.accelerator.unwrap_model(model)
    # First: shared weights that a validation left whole are shares again from here on.
    everything = bare_model.state_dict()
    tensors = dict(bare_model.named_parameters(remove_duplicate=False))
    if hasattr(bare_model, "peft_config"):
        tensors = {name: tensor for name, tensor in tensors.items() if tensor.requires_grad}
    else:
        tensors = everything | tensors
    gathered = {id(tensor): tensor for tensor in tensors.values()}
    gathered = {key: gather(engine, tensor.detach()) for key, tensor in gathered.items()}
    if not engine.accelerator.is_main_process:
        return {}
    return {name: gathered[id(tensor)] for name, tensor in tensors.items()}


def gather(engine: Engine, tensor: torch.Tensor) -> torch.Tensor:
    """A tensor whole on the CPU of rank 0, empty on the others, which hold one at a time; all call this together."""
    whole = engine.whole(tensor)
    return whole.cpu() if engine.accelerator.is_main_process else whole.new_empty(0)


def write_model(model: PreTrainedModel, weights: dict[str, torch.Tensor], origin: Origin, target: Path) -> None:
    """Writes the model's files with these weights; raises TrainError if one of them is empty."""
    empty = [name for name, tensor in weights.items() if tensor.numel() == 0]
    if empty:
        raise TrainError(f'parameter "{empty[0]}" is empty, the weights were not gathered', where=str(target))
    model.save_pretrained(target, state_dict=weights)
    (target / "README.md").unlink(missing_ok=True)  # peft's empty model card
    if hasattr(model, "peft_config"):
        write_record(model, target)
        document = {"format_version": FORMAT_VERSION, "fingerprint": origin.base_fingerprint}
        document |= {"dataset_sha256": origin.dataset_sha256}
        (target / BASE_RECORD).write_bytes(orjson.dumps(document, option=orjson.OPT_APPEND_NEWLINE))
    else:
        config = orjson.loads((target / "config.json").read_bytes())
        content = orjson.dumps(with_old_keys(config), option=orjson.OPT_INDENT_2 | orjson.OPT_APPEND_NEWLINE)
        (target / "config.json").write_bytes(content)
    shutil.copytree(origin.tokenizer_dir, target, dirs_exist_ok=True)


def save_checkpoint(
    engine: Engine,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    state: RunState,
    fingerprint: dict[str, Any],
    origin: Origin,
    target: Path,
) -> None:
    """Writes a checkpoint from all ranks together; it appears by one rename after every rank has written."""
    import torch

    accelerator = engine.accelerator
    staging = target.with_name(f".{target.name}.partial")
    weights, moments = gathered_weights(engine, model), gathered_moments(engine, optimizer)
    if accelerator.is_main_process:
        shutil.rmtree(staging, ignore_errors=True)
        with writing(staging):
            (staging / "state").mkdir(parents=True)
            write_model(accelerator.unwrap_model(model), weights, origin, staging / "model")
            torch.save(moments, staging / "state" / "optimizer.pt")
    accelerator.wait_for_everyone()
    with writing(staging):
        torch.save(random_state(), staging / "state" / f"random-{accelerator.process_index:04d}.pt")
    accelerator.wait_for_everyone()
    if accelerator.is_main_process:
        files = {str(p.relative_to(staging)): p.stat().st_size for p in sorted(staging.rglob("*")) if p.is_file()}
        document = {"format_version": FORMAT_VERSION, **asdict(state), "fingerprint": fingerprint, "files": files}
        (staging / "state" / "run.json").write_bytes(orjson.dumps(document, option=orjson.OPT_INDENT_2))
        publish(staging, target)
    accelerator.wait_for_everyone()


def gathered_moments(engine: Engine, optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    """The optimizer's state, the same under every engine, its tensors as `gather` gives them; all ranks call it."""
    state = optimizer.state_dict()
    whole = {
        index: {name: gather(engine, value) if hasattr(value, "dim") else value for name, value in moments.items()}
        for index, moments in state["state"].items()
    }
    return state | {"state": whole}


@contextlib.contextmanager
def writing(staging: Path) -> Iterator[None]:
    """Turns a write that fails, as on a full disk, into a TrainError, and gives the space back."""
    from safetensors import SafetensorError

    try:
        yield
    except (OSError, RuntimeError, SafetensorError) as error:
        if is_out_of_memory(error):
            raise
        shutil.rmtree(staging, ignore_errors=True)
        raise TrainError(
            f"cannot be written: {first_line(error)}", where=str(staging.parent), fix="make room, then use --resume"
        ) from error


def read_run(checkpoint: Path) -> dict[str, Any]:
    """What `state/run.json` of a whole checkpoint says."""
    return orjson.loads((checkpoint / "state" / "run.json").read_bytes())


def load_checkpoint(
    engine: Engine, optimizer: torch.optim.Optimizer, checkpoint: Path, changed: AbstractSet[str]
) -> RunState:
    """Restores the optimizer and the random state; raises TrainError if that cannot be.

    The model has its weights already. What has no meaning after the `changed` settings begins anew: the moments of
    another optimizer, the memory of another balancer or with other tasks, and with other data the validations'.
    """
    document = read_run(checkpoint)
    own_state = checkpoint / "state" / f"random-{engine.accelerator.process_index:04d}.pt"
    with reading(checkpoint):
        if "optimizer" not in changed:
            load_optimizer(engine, optimizer, checkpoint / "state" / "optimizer.pt")
        if own_state.is_file():
            restore_random_state(load_tensors(own_state))
    return RunState(
        document["global_step"],
        StreamPosition(**document["position"]),
        None if forgets_balance(changed) else document["balance"],
        ValidationRecord() if "dataset" in changed else ValidationRecord(**document["validation"]),
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


def load_optimizer(engine: Engine, optimizer: torch.optim.Optimizer, path: Path) -> None:
    """Restores the moments; rates and decays stay those of the optimizer's own settings, and so of the config."""
    settings = [{name: value for name, value in group.items() if name != "params"} for group in optimizer.param_groups]
    state = load_tensors(path)
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    for index, moments in state["state"].items():
        for name, value in moments.items():
            if hasattr(value, "dim"):
                moments[name] = engine.share(value, parameters[index])
    optimizer.load_state_dict(state)
    for group, own in zip(optimizer.param_groups, settings, strict=True):
        group.update(own)


def load_tensors(path: Path) -> Any:
    """What torch.save wrote, on the CPU."""
    import torch

    return torch.load(path, map_location="cpu", weights_only=True)


def load_adapter(model: nn.Module, directory: Path) -> None:
    """Copies a saved adapter, if there is one, into the model's; raises TrainError unless every tensor fits."""
    from safetensors.torch import load_file

    path = directory / "adapter_model.safetensors"
    if not path.is_file():
        return
    from peft import get_peft_model_state_dict, set_peft_model_state_dict

    with reading(directory.parent):
        saved = load_file(path)
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


def shape_of(tensor: torch.Tensor | None) -> str:
    """A tensor's shape in words."""
    return "missing" if tensor is None else f"of shape {tuple(tensor.shape)}"
