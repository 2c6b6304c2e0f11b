"""Matrix products for layers whose gradients are written out here: by oneDNN on a CPU in float32, else torch's own."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

# oneDNN compiles kernels for every number of rows that it meets and keeps them: a run over packed rows would meet all.
ROWS = 32


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """`x @ weight.T + bias` of x (T, in) and weight (out, in), a transposed view at will; no gradient is recorded.

    torch sends float32 products to BLAS, whose kernels are slower than oneDNN's on AMD's CPUs. Within torch.compile
    they stay there: its compiler takes oneDNN's operator for constant weights only.
    """
    import torch
    from torch.nn import functional as F

    is_float32 = x.device.type == "cpu" and x.dtype == weight.dtype == torch.float32
    if is_float32 and torch.backends.mkldnn.is_available() and not torch.compiler.is_compiling():
        num_rows = len(x)
        padded = F.pad(x, (0, 0, 0, -num_rows % ROWS)) if num_rows % ROWS else x
        return torch.ops.mkldnn._linear_pointwise(padded, weight, bias, "none", [], "")[:num_rows]
    return F.linear(x, weight, bias)


def without_autocast(tensor: Tensor) -> contextlib.AbstractContextManager[object]:
    """A context in which products of tensors where this one is have the types of their factors."""
    import torch

    # Tensors without values know no autocast.
    return contextlib.nullcontext() if tensor.is_meta else torch.autocast(tensor.device.type, enabled=False)
