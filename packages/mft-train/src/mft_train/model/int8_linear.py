"""Linear layers over a frozen weight in 8 bits: a product with what the 8 bits give back, made anew in each pass."""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Any

import torch  # noqa: TID253 - an autograd function is a class of torch's; only a run imports this module

from mft_train.model.matrix_product import linear, without_autocast

if TYPE_CHECKING:
    from torch import Tensor, nn

STEPS = 127  # a row's largest number is so many of its steps


def compute_exactly(layer: Any, dtype: torch.dtype) -> None:
    """Lets one of bitsandbytes' 8-bit layers compute in `dtype` with the weight that it has, and nothing in 8 bits.

    Its own product rounds the input to 8 bits too (on a GPU, and on a CPU in evaluation, so that a validation would
    not be of what is trained), and keeps a copy of the input where recomputing activations cannot let go of it.
    """
    scales = layer.weight.SCB
    layer.weight = torch.nn.Parameter(layer.weight.data, requires_grad=False)
    layer.register_buffer("scales", scales, persistent=False)
    layer.compute_dtype = dtype
    layer.forward = functools.partial(forward, layer)


def forward(layer: Any, x: Tensor) -> Tensor:
    """The layer's output, of the type of its input."""
    out = _Int8Linear.apply(x, layer.weight, layer.scales, layer.compute_dtype)
    return out if layer.bias is None else out + layer.bias.to(out.dtype)


def given_back(weight: Tensor, scales: Tensor, dtype: torch.dtype) -> Tensor:
    """What (out, in) numbers in 8 bits and the largest number of each row stand for."""
    return weight.to(dtype).mul_((scales / STEPS).to(dtype).unsqueeze(1))


def int8_layers(model: nn.Module) -> dict[str, Any]:
    """The layers of a model whose weight is in 8 bits, by name."""
    from bitsandbytes.nn import Linear8bitLt

    return {name: module for name, module in model.named_modules() if isinstance(module, Linear8bitLt)}


class _Int8Linear(torch.autograd.Function):
    """y = x W^T with W frozen; between the passes W is there in 8 bits only."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, scales: Tensor, dtype: torch.dtype) -> Tensor:
        ctx.save_for_backward(weight, scales)
        ctx.dtype, ctx.input_dtype = dtype, x.dtype
        flat = x.reshape(-1, x.shape[-1]).to(dtype)
        with without_autocast(x):
            out = linear(flat, given_back(weight, scales, dtype))
        return out.view(*x.shape[:-1], -1).to(x.dtype)

    @staticmethod
    def backward(ctx: Any, *upstreams: Tensor) -> tuple[Tensor, None, None, None]:
        weight, scales = ctx.saved_tensors
        upstream = upstreams[0].reshape(-1, upstreams[0].shape[-1]).to(ctx.dtype)
        with without_autocast(upstream):
            gradient = linear(upstream, given_back(weight, scales, ctx.dtype).T)
        return gradient.view(*upstreams[0].shape[:-1], -1).to(ctx.input_dtype), None, None, None
