"""One process, or torch's DistributedDataParallel over several: every rank holds all weights."""

from __future__ import annotations

import contextlib
import os
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, Any

from mft_train.errors import TrainError

if TYPE_CHECKING:
    import torch
    from accelerate import Accelerator
    from torch import Tensor, nn

    from mft_train.engine.world import World
    from mft_train.model.compute import Compute


@dataclass(frozen=True, slots=True)
class PlainEngine:
    """The verbs of a step. What every way does alike (reductions, autocast, process state) is the accelerator's."""

    accelerator: Accelerator

    def prepare(self, model: nn.Module, optimizer: torch.optim.Optimizer) -> tuple[Any, Any]:
        """The model and the optimizer as the step uses them."""
        return self.accelerator.prepare(model, optimizer)

    def gradients(self, model: nn.Module, *, is_last: bool) -> contextlib.AbstractContextManager[Any]:
        """The context of one forward and backward pass: ranks exchange gradients in the step's last one only."""
        return contextlib.nullcontext() if is_last else self.accelerator.no_sync(model)

    def backward(self, objective: Tensor) -> None:
        """Adds the gradient of a rank's share of the objective; shares add up: DDP's mean over ranks is undone."""
        self.accelerator.backward(objective * self.accelerator.num_processes)

    def clip(self, model: nn.Module, max_norm: float) -> float:
        """Scales the gradient down to a global L2 norm of `max_norm`; the norm before."""
        return float(self.accelerator.clip_grad_norm_(model.parameters(), max_norm))

    def step(self, optimizer: torch.optim.Optimizer, learning_rate: float) -> None:
        """Updates the weights, and forgets the gradient."""
        for group in optimizer.param_groups:
            group["lr"] = learning_rate
        optimizer.step()
        optimizer.zero_grad()


def start_engine(world: World, compute: Compute, timeout_seconds: float) -> PlainEngine:
    """Joins the processes of the run; raises TrainError if other processes run than `world` says.

    A process waits up to `timeout_seconds` for the others.
    """
    from accelerate import Accelerator
    from accelerate.utils import InitProcessGroupKwargs

    on_cpu = compute.device.type == "cpu"
    if on_cpu:
        os.environ.setdefault("DS_ACCELERATOR", "cpu")  # DeepSpeed, imported by peft, would warn of what it detects
    accelerator = Accelerator(
        cpu=on_cpu,
        mixed_precision="bf16" if compute.dtype == "bfloat16" else "no",
        kwargs_handlers=[InitProcessGroupKwargs(timeout=timedelta(seconds=timeout_seconds))],
    )
    found = accelerator.distributed_type.value
    # A launcher's only process is a group of one.
    expected = {"MULTI_CPU" if on_cpu else "MULTI_GPU"} | ({"NO"} if world.world_size == 1 else set())
    ranks = (accelerator.process_index, accelerator.num_processes, accelerator.local_process_index)
    if found not in expected or ranks != (world.rank, world.world_size, world.local_rank):
        raise TrainError(
            f"{world} was asked for, but accelerate runs rank {ranks[0]} of {ranks[1]}, local rank {ranks[2]}, "
            f"as {found}",
            fix="look at the variables that begin with ACCELERATE_ in the environment",
        )
    return PlainEngine(accelerator)
