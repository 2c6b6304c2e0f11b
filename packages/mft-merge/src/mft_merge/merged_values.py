"""The arithmetic of a merge: tiles of rows of W + scale * B @ A in float32, rounded once."""

from collections.abc import Iterator
from typing import TYPE_CHECKING

from mft_merge.errors import MergeError
from mft_merge.plan import OutputTensor
from mft_merge.tensor_file import FLOAT_TYPES, StoredTensor, num_rows, read_rows

if TYPE_CHECKING:
    from torch import Tensor
    from torch import dtype as TorchDtype

# Stored bytes of one tile; at most about ten times as much is in memory while it is merged.
TILE_BYTES = 16 << 20


def merged_tiles(tensor: OutputTensor) -> Iterator["Tensor"]:
    """The values of one output tensor, as tiles of rows in its output type."""
    import torch

    dtype = getattr(torch, FLOAT_TYPES[tensor.dtype])
    if tensor.update is None:
        for weight in _tiles(tensor.source):
            rounded = weight.to(dtype)
            _check_finite(rounded, weight, tensor)
            yield rounded
        return
    left, right = _factors(tensor)
    magnitude = tensor.update.magnitude and read_finite(tensor.update.magnitude)
    column_factor = None
    if magnitude is not None and tensor.is_transposed:
        column_factor = magnitude / _column_norms(tensor, left, right)
    start = 0
    for weight in _tiles(tensor.source):
        rows = left[start : start + len(weight)]
        start += len(weight)
        if magnitude is None:
            rounded = add_update(weight, rows, right, tensor.update.scale, dtype)
        else:
            sums = weight.float() + (rows @ right) * tensor.update.scale
            if column_factor is None:
                factor = (magnitude[start - len(weight) : start] / torch.linalg.norm(sums, dim=1))[:, None]
            else:
                factor = column_factor
            rounded = (factor * sums).to(dtype)
        _check_finite(rounded, weight, tensor)
        yield rounded


def add_update(weight: "Tensor", left: "Tensor", right: "Tensor", scale: float, dtype: "TorchDtype") -> "Tensor":
    """weight + scale * left @ right in float32, rounded to `dtype`; where the update is zero, the weight itself.

    `weight` is (rows, columns), `left` (rows, rank), `right` (rank, columns). Keeping the weight where nothing
    is added keeps the sign of its zeros and the bits of its NaNs.
    """
    import torch

    update = (left @ right) * scale
    return torch.where(update == 0, weight.to(dtype), (weight.float() + update).to(dtype))


def read_finite(tensor: StoredTensor) -> "Tensor":
    """A whole adapter tensor as float32; one that is not finite is an error."""
    import torch

    values = read_rows(tensor, 0, num_rows(tensor)).float()
    if not bool(torch.isfinite(values).all()):
        raise MergeError(f'adapter tensor "{tensor.name}" has values that are not finite', where=str(tensor.path))
    return values


def _factors(tensor: OutputTensor) -> tuple["Tensor", "Tensor"]:
    """The (rows, rank) and (rank, columns) factors of the update as the weight is stored."""
    a, b = read_finite(tensor.update.a), read_finite(tensor.update.b)
    return (a.T.contiguous(), b.T.contiguous()) if tensor.is_transposed else (b, a)


def _column_norms(tensor: OutputTensor, left: "Tensor", right: "Tensor") -> "Tensor":
    """The norms of the columns of W + scale * left @ right, summed in float64 over all tiles."""
    import torch

    squares = torch.zeros(right.shape[1], dtype=torch.float64)
    start = 0
    for weight in _tiles(tensor.source):
        rows = left[start : start + len(weight)]
        start += len(weight)
        squares += (weight.float() + (rows @ right) * tensor.update.scale).double().square().sum(dim=0)
    return squares.sqrt().float()


def _tiles(source: StoredTensor) -> Iterator["Tensor"]:
    rows = num_rows(source)
    step = max(1, TILE_BYTES * rows // max(1, source.num_bytes))
    for start in range(0, rows, step):
        yield read_rows(source, start, min(rows, start + step))


def _check_finite(rounded: "Tensor", weight: "Tensor", tensor: OutputTensor) -> None:
    import torch

    if bool((~torch.isfinite(rounded) & torch.isfinite(weight)).any()):
        raise MergeError(
            f'values of "{tensor.name}" do not fit {FLOAT_TYPES[tensor.dtype]}', fix="use --dtype bfloat16 or float32"
        )
