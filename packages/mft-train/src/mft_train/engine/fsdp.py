"""torch's fully sharded data parallel (FSDP2): every rank holds a share of each weight, gradient and moment."""

from __future__ import annotations

import contextlib
import functools
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from mft_train.engine.plain import PlainEngine, autocast_forward, ready_dtype
from mft_train.errors import TrainError
from mft_train.model.decoder_layers import decoder_layers
from mft_train.model.stored_weights import source_of

if TYPE_CHECKING:
    from collections.abc import Callable

    import torch
    from torch import Tensor, nn

    from mft_train.config.config import DistributedConfig
    from mft_train.model.stored_weights import StoredWeight


@dataclass(frozen=True, slots=True)
class FsdpEngine(PlainEngine):
    """The verbs of a step over sharded weights; the layers are sharded one by one, what is left with the root.

    An update of shards is that of whole weights. A share is rows of the first dimension, and so a range of the flat
    tensor.
    """

    settings: DistributedConfig
    dtype: str
    is_quantized: bool  # the base

    @property
    def name(self) -> str:
        """What runs, in words."""
        return "fsdp (torch's FSDP2)" + ", in host memory" * self.settings.offload_parameters

    @property
    def is_filled(self) -> bool:
        """Whether `prepare` gives every rank rank 0's weights, on their device, the trained ones as float32."""
        return not self.is_quantized  # a quantised weight comes with scales, which stay with each rank

    def prepare(
        self, model: nn.Module, build_optimizer: Callable[[nn.Module], torch.optim.Optimizer]
    ) -> tuple[nn.Module, torch.optim.Optimizer]:
        """The model, sharded in place, and the optimizer of its shards; raises TrainError if it has no layers."""
        import torch
        from torch.distributed.fsdp import CPUOffloadPolicy, MixedPrecisionPolicy, OffloadPolicy, fully_shard

        layers = decoder_layers(model)
        if not layers:
            raise TrainError("fsdp finds no decoder layers in this model", fix="set distributed.engine: ddp")
        if self.is_quantized:
            check_storage(model, getattr(torch, self.dtype))
        policy = MixedPrecisionPolicy()
        if self.settings.mixed_precision and self.dtype != "float32":
            policy = MixedPrecisionPolicy(param_dtype=getattr(torch, self.dtype), reduce_dtype=torch.float32)
        offload = OffloadPolicy()
        if self.settings.offload_parameters:
            offload = CPUOffloadPolicy(pin_memory=self.accelerator.device.type == "cuda")
        share = functools.partial(fully_shard, mp_policy=policy, offload_policy=offload)
        for layer in layers:  # one at a time is whole
            sources = self.fill(layer)
            share(layer, reshard_after_forward=self.settings.reshard_after_forward)
            self.read(layer, sources)
        sources = self.fill(model)
        share(model, reshard_after_forward=False)
        self.read(model, sources)
        autocast_forward(model, self.accelerator)
        return model, build_optimizer(model)

    def fill(self, module: nn.Module) -> dict[str, StoredWeight]:
        """Gives the weights of a module that are not shared yet, and its buffers, the values of rank 0 on their device.

        Keeps none of them: a weight that is shared from here on leaves the memory. Of a quantised model those that are
        trained, as every rank has read the rest. Weights that lie in files get none yet; returned is where.
        """
        import torch
        from torch.distributed import broadcast

        sources = {}
        for name, tensor in [*module.named_parameters(), *module.named_buffers()]:
            is_wanted = self.is_filled or tensor.requires_grad
            if not is_wanted or hasattr(tensor, "full_tensor"):
                continue
            device, dtype = self.accelerator.device, ready_dtype(tensor)
            if source := source_of(tensor):
                sources[name] = source
                tensor.data = torch.empty_like(tensor, device=device, dtype=dtype)
            else:
                tensor.data = tensor.data.to(device, dtype)
                broadcast(tensor.data, src=0)
        return sources

    def read(self, module: nn.Module, sources: dict[str, StoredWeight]) -> None:
        """Reads this rank's shares of shared weights from their files."""
        for name, source in sources.items():
            weight: Any = module.get_parameter(name)
            source.fill(weight.to_local(), self.held(weight))

    def gradients(self, model: Any, *, is_last: bool) -> contextlib.AbstractContextManager[Any]:  # noqa: ARG002
        """The context of one forward and backward pass: ranks exchange gradients in each, or would hold them whole."""
        return contextlib.nullcontext()

    def backward(self, model: Any, objective: Tensor) -> None:  # noqa: ARG002
        """Adds the gradient of a rank's share of the objective; shares add up: FSDP's mean over ranks is undone."""
        (objective * self.accelerator.num_processes).backward()

    def clip(self, model: Any, optimizer: Any, max_norm: float) -> float:  # noqa: ARG002
        """Lets the next step use the gradient at a global L2 norm of at most `max_norm`; the norm before."""
        from torch.nn.utils import clip_grad_norm_

        norm: Any = clip_grad_norm_(model.parameters(), max_norm)
        return float(norm.full_tensor() if hasattr(norm, "full_tensor") else norm)

    def share_again(self, model: Any) -> None:
        """Makes shares of the weights that a pass without gradients has left whole; all ranks call this together."""
        model.state_dict()  # its hooks do that

    def whole(self, tensor: Tensor) -> Tensor:
        """A weight of the model, or its gradient, whole; all ranks call this together."""
        shared: Any = tensor.detach()
        return shared.full_tensor() if hasattr(shared, "full_tensor") else shared

    def held(self, parameter: Tensor) -> range:
        """Which numbers of a parameter, laid flat, this rank has the moments of."""
        from torch.distributed.tensor._utils import compute_local_shape_and_global_offset

        shared: Any = parameter
        shape, offset = compute_local_shape_and_global_offset(shared.shape, shared.device_mesh, shared.placements)
        row = parameter.numel() // parameter.shape[0]
        return range(offset[0] * row, (offset[0] + shape[0]) * row)

    def written(self, parameter: Tensor) -> range:
        """Which of them this rank writes into a checkpoint: all ranks together write each once."""
        return self.held(parameter)

    def moments(self, optimizer: Any, parameter: Tensor) -> dict[str, Any]:
        """The optimizer's state of a parameter; what there is for each of its numbers is flat, those `held` of them."""
        state = optimizer.state[parameter]
        return {
            name: value.to_local().flatten() if hasattr(value, "to_local") else value for name, value in state.items()
        }

    def shaped(self, value: Any, parameter: Tensor) -> Any:
        """A flat moment as the optimizer keeps it beside a parameter."""
        from torch.distributed.tensor import DTensor

        if value.dim() == 0:  # a moment's step counter is nobody's share
            return value
        shared: Any = parameter
        local = value.to(shared.to_local().device).view(shared.to_local().shape)
        return DTensor.from_local(
            local, shared.device_mesh, shared.placements, run_check=False, shape=shared.shape, stride=shared.stride()
        )


def check_storage(model: nn.Module, dtype: torch.dtype) -> None:
    """Asserts that 4-bit weights are stored as numbers of the compute type: a gathering that casts breaks others."""
    from bitsandbytes.nn import Linear4bit

    for module in model.modules():
        assert not isinstance(module, Linear4bit) or module.weight.dtype == dtype  # noqa: S101 - only a bug breaks it
