"""One process, or torch's DistributedDataParallel over several: every rank holds all weights."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable

    import torch
    from accelerate import Accelerator
    from torch import Tensor, nn


@dataclass(frozen=True, slots=True)
class PlainEngine:
    """The verbs of a step. What every way does alike (reductions, autocast, process state) is the accelerator's."""

    accelerator: Accelerator

    def prepare(
        self, model: nn.Module, build_optimizer: Callable[[nn.Module], torch.optim.Optimizer]
    ) -> tuple[Any, Any]:
        """The model as the step uses it, and its optimizer."""
        return self.accelerator.prepare(model, build_optimizer(model))

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

    def whole(self, tensor: Tensor) -> Tensor:
        """A tensor of the model or its optimizer, whole; all ranks call this together."""
        return tensor

    def share(self, whole: Tensor, like: Tensor) -> Tensor:  # noqa: ARG002
        """This rank's share of a whole tensor, as `like` is shared."""
        return whole
