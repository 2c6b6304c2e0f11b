"""LoRA's two small products added straight into the frozen layer's output, without copies of it in between."""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Any

import torch  # noqa: TID253 - an autograd function is a class of torch's; only a run imports this module

from mft_train.model.matrix_product import linear, without_autocast

if TYPE_CHECKING:
    from torch import Tensor, nn

ADAPTER = "default"


def fuse_adapters(model: nn.Module) -> int:
    """Gives every plain LoRA layer of a peft model a faster forward of the same value; how many there are.

    A layer with dropout, DoRA, a bias in B or a base that is not a plain linear layer keeps peft's own.
    """
    from peft.tuners.lora import Linear

    layers = [module for module in model.modules() if type(module) is Linear and is_plain(module)]
    for layer in layers:
        layer.forward = functools.partial(forward, layer, layer.forward)
    return len(layers)


def separate_adapters(model: nn.Module) -> None:
    """Gives the layers that `fuse_adapters` changed peft's own forward back, which calls their parts one by one."""
    from peft.tuners.lora import Linear

    for module in model.modules():
        if type(module) is Linear:
            vars(module).pop("forward", None)


def is_plain(layer: Any) -> bool:
    """Whether a peft layer is W x + s B A x and nothing else."""
    from torch import nn

    return (
        type(layer.base_layer) is nn.Linear
        and not any(parameter.requires_grad for parameter in layer.base_layer.parameters())
        and list(layer.lora_A) == [ADAPTER]
        and isinstance(layer.lora_dropout[ADAPTER], nn.Identity)
        and layer.lora_B[ADAPTER].bias is None
        and ADAPTER not in layer.lora_variant
        and not layer.fan_in_fan_out
    )


def forward(layer: Any, fallback: Any, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    """The layer's output; peft's own forward where the adapter is off or merged, or more than x is given."""
    if args or kwargs or layer.disable_adapters or layer.merged or layer.active_adapters != [ADAPTER]:
        return fallback(x, *args, **kwargs)
    base = layer.base_layer
    a, b = layer.lora_A[ADAPTER].weight, layer.lora_B[ADAPTER].weight
    return _LoraLinear.apply(x, base.weight, base.bias, a, b, layer.scaling[ADAPTER])


class _LoraLinear(torch.autograd.Function):
    """y = x W^T + bias + s (x A^T) B^T with W and bias frozen; computed in W's type, gradients in their own."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, a: Tensor, b: Tensor, scaling: float
    ) -> Tensor:
        dtype = weight.dtype
        flat = x.reshape(-1, x.shape[-1]).to(dtype)
        with without_autocast(x):
            reduced = flat @ a.to(dtype).T
            out = linear(flat, weight, bias).addmm_(reduced, b.to(dtype).T, alpha=scaling)
        ctx.save_for_backward(flat, reduced, weight, a, b)
        ctx.scaling, ctx.shape, ctx.input_dtype = scaling, x.shape, x.dtype
        return out.view(*x.shape[:-1], -1)

    @staticmethod
    def backward(ctx: Any, *upstreams: Tensor) -> tuple[Tensor | None, None, None, Tensor, Tensor, None]:
        flat, reduced, weight, a, b = ctx.saved_tensors
        dtype = weight.dtype
        upstream = upstreams[0].reshape(-1, upstreams[0].shape[-1]).to(dtype)
        with without_autocast(upstream):
            through_b = (upstream @ b.to(dtype)).mul_(ctx.scaling)
            x_gradient = None
            if ctx.needs_input_grad[0]:
                x_gradient = linear(upstream, weight.T).addmm_(through_b, a.to(dtype))
                x_gradient = x_gradient.view(ctx.shape).to(ctx.input_dtype)
            a_gradient = (through_b.T @ flat).to(a.dtype)
            b_gradient = (upstream.T @ reduced).mul_(ctx.scaling).to(b.dtype)
        return x_gradient, None, None, a_gradient, b_gradient, None
