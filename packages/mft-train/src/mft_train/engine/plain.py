"""One process, or torch's DistributedDataParallel over several: every rank holds all weights."""

from __future__ import annotations

import contextlib
import functools
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    import torch
    from accelerate import Accelerator
    from torch import Tensor, nn


@dataclass(frozen=True, slots=True)
class PlainEngine:
    """The verbs of a step. What every way does alike (reductions, autocast, process state) is the accelerator's."""

    accelerator: Accelerator

    @property
    def name(self) -> str:
        """What runs, in words."""
        return "ddp"

    @property
    def is_filled(self) -> bool:
        """Whether `prepare` gives every rank rank 0's weights, on their device, the trained ones as float32."""
        return False

    def prepare(
        self, model: nn.Module, build_optimizer: Callable[[nn.Module], torch.optim.Optimizer]
    ) -> tuple[Any, Any]:
        """The model as the step uses it, and its optimizer."""
        from torch.nn.parallel import DistributedDataParallel

        optimizer = build_optimizer(model)
        DistributedDataParallel._set_params_and_buffers_to_ignore_for_model(model, read_alike(model))
        return self.accelerator.prepare(model, optimizer)

    def gradients(self, model: Any, *, is_last: bool) -> contextlib.AbstractContextManager[Any]:
        """The context of one forward and backward pass: ranks exchange gradients in the step's last one only."""
        return contextlib.nullcontext() if is_last else self.accelerator.no_sync(model)

    def backward(self, model: Any, objective: Tensor) -> None:  # noqa: ARG002
        """Adds the gradient of a rank's share of the objective; shares add up: DDP's mean over ranks is undone."""
        self.accelerator.backward(objective * self.accelerator.num_processes)

    def clip(self, model: Any, optimizer: Any, max_norm: float) -> float:  # noqa: ARG002
        """Lets the next step use the gradient at a global L2 norm of at most `max_norm`; the norm before."""
        return float(self.accelerator.clip_grad_norm_(model.parameters(), max_norm))

    def step(self, model: Any, optimizer: Any, learning_rate: float) -> None:  # noqa: ARG002
        """Updates the weights, and forgets the gradient."""
        set_rate(optimizer, learning_rate)
        optimizer.step()
        optimizer.zero_grad()

    def share_again(self, model: Any) -> None:
        """Makes shares of the weights that a pass without gradients has left whole; all ranks call this together."""

    def whole(self, tensor: Tensor) -> Tensor:
        """A weight of the model, or its gradient, whole; all ranks call this together."""
        return tensor.detach()

    def held(self, parameter: Tensor) -> range:
        """Which numbers of a parameter, laid flat, this rank has the moments of."""
        return range(parameter.numel())

    def written(self, parameter: Tensor) -> range:
        """Which of them this rank writes into a checkpoint: all ranks together write each once."""
        size, rank, ranks = parameter.numel(), self.accelerator.process_index, self.accelerator.num_processes
        return range(size * rank // ranks, size * (rank + 1) // ranks)

    def moments(self, optimizer: Any, parameter: Tensor) -> dict[str, Any]:
        """The optimizer's state of a parameter; what there is for each of its numbers is flat, those `held` of them."""
        state = optimizer.state[parameter]
        is_each = {name: getattr(value, "shape", None) == parameter.shape for name, value in state.items()}
        return {name: value.flatten() if is_each[name] else value for name, value in state.items()}

    def restore(self, optimizer: Any, moments: Mapping[Tensor, Mapping[str, Any]]) -> None:
        """Gives an optimizer its state back, as `moments` tells it; rates and decays stay as they are."""
        settings = [
            {name: value for name, value in group.items() if name != "params"} for group in optimizer.param_groups
        ]
        parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
        state = optimizer.state_dict()
        state["state"] = {
            index: {name: self.shaped(value, parameter) for name, value in moments[parameter].items()}
            for index, parameter in enumerate(parameters)
            if parameter in moments
        }
        optimizer.load_state_dict(state)
        for group, own in zip(optimizer.param_groups, settings, strict=True):
            group.update(own)

    def shaped(self, value: Any, parameter: Tensor) -> Any:
        """A flat moment as the optimizer keeps it beside a parameter."""
        is_each = getattr(value, "shape", None) == (parameter.numel(),)
        return value.view(parameter.shape) if is_each else value


def ready_dtype(weight: Tensor) -> torch.dtype:
    """The type of a weight in training: float32, or more, where it is trained, else that which it has."""
    import torch

    return torch.promote_types(weight.dtype, torch.float32) if weight.requires_grad else weight.dtype


def read_alike(model: nn.Module) -> list[str]:
    """The names of the weights that every rank has from the same files and keeps as they are: nobody has to send them.

    A weight that is received is written to, and no longer a page of its file, which the ranks of a machine share.
    """
    if hasattr(model, "initial_factors"):  # each rank has taken its adapters from the base by its own arithmetic
        return []
    return [name for name, weight in model.named_parameters() if not weight.requires_grad]


def autocast_forward(model: Any, accelerator: Accelerator) -> None:
    """Lets the model's forward pass compute in the run's type, in place."""
    forward = model.forward

    @functools.wraps(forward)
    def wrapped(*args: Any, **kwargs: Any) -> Any:
        with accelerator.autocast():
            return forward(*args, **kwargs)

    model.forward = wrapped


def set_rate(optimizer: Any, learning_rate: float) -> None:
    """Sets the learning rate of every group."""
    for group in optimizer.param_groups:
        group["lr"] = learning_rate
