"""torch's fully sharded data parallel (FSDP2): every rank holds a share of each weight, gradient and moment."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from mft_train.engine.plain import PlainEngine
from mft_train.errors import TrainError
from mft_train.model.decoder_layers import decoder_layers

if TYPE_CHECKING:
    from collections.abc import Callable

    import torch
    from torch import Tensor, nn

    from mft_train.config.config import DistributedConfig


@dataclass(frozen=True, slots=True)
class FsdpEngine(PlainEngine):
    """The verbs of a step over sharded weights; the layers are sharded one by one, what is left with the root.

    An update of shards is that of whole weights.
    """

    settings: DistributedConfig

    def prepare(
        self, model: nn.Module, build_optimizer: Callable[[nn.Module], torch.optim.Optimizer]
    ) -> tuple[nn.Module, torch.optim.Optimizer]:
        """The model, sharded in place, and the optimizer of its shards; raises TrainError if it has no layers."""
        from torch.distributed.fsdp import fully_shard

        layers = decoder_layers(model)
        if not layers:
            raise TrainError("fsdp finds no decoder layers in this model", fix="set distributed.engine: ddp")
        for layer in layers:
            fully_shard(layer, reshard_after_forward=self.settings.reshard_after_forward)
        fully_shard(model, reshard_after_forward=False)
        return model, build_optimizer(model)

    def gradients(self, model: nn.Module, *, is_last: bool) -> contextlib.AbstractContextManager[Any]:  # noqa: ARG002
        """The context of one forward and backward pass: ranks exchange gradients in each, or would hold them whole."""
        return contextlib.nullcontext()

    def backward(self, objective: Tensor) -> None:
        """Adds the gradient of a rank's share of the objective; shares add up: FSDP's mean over ranks is undone."""
        (objective * self.accelerator.num_processes).backward()

    def clip(self, model: nn.Module, max_norm: float) -> float:
        """Scales the gradient down to a global L2 norm of `max_norm`; the norm before."""
        from torch.nn.utils import clip_grad_norm_

        norm: Any = clip_grad_norm_(model.parameters(), max_norm)
        return float(norm.full_tensor() if hasattr(norm, "full_tensor") else norm)

    def whole(self, tensor: Tensor) -> Tensor:
        """A tensor of the model or its optimizer, whole; all ranks call this together."""
        shared: Any = tensor
        return shared.full_tensor() if hasattr(tensor, "full_tensor") else tensor

    def share(self, whole: Tensor, like: Tensor) -> Tensor:
        """This rank's share of a whole tensor, as `like` is shared."""
        from torch.distributed.tensor import DTensor, distribute_tensor

        if not isinstance(like, DTensor) or whole.dim() == 0:  # a moment's step counter is nobody's share
            return whole
        return distribute_tensor(whole.to(like.device), like.device_mesh, like.placements)
