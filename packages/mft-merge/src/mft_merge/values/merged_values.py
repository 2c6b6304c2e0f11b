"""The arithmetic of a merge: tiles of rows of W + scale * B @ A in float32, rounded once."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from math import prod
from typing import TYPE_CHECKING

from mft_merge.errors import MergeError
from mft_merge.files.tensor_file import FLOAT_TYPES, StoredTensor, num_rows, read_rows
from mft_merge.planning.plan import OutputTensor, Product
from mft_merge.values.dequantized import dequantized, rows_at_a_time
from mft_merge.values.low_rank_factors import factors, read_finite

if TYPE_CHECKING:
    from torch import Tensor
    from torch import dtype as TorchDtype

# Stored bytes of one tile; about eight times as much is in memory while it is merged.
TILE_BYTES = 4 << 20


@dataclass(slots=True)
class Norms:
    """The Frobenius norms, squared, of a tensor's change by quantisation."""

    quantization_square: float = 0.0


def merged_tiles(tensor: OutputTensor, norms: Norms) -> Iterator["Tensor"]:
    """The values of one output tensor, as tiles of rows in its output type; adds to `norms` on the way."""
    first_row = 0
    for index, matrix in enumerate(_matrices(tensor)):
        for weight, rounded in _matrix_tiles(tensor, matrix, index, norms):
            _replace_rows(rounded, tensor, first_row)
            _check_finite(rounded, weight, tensor)
            first_row += len(rounded)
            yield rounded


def add_update(weight: "Tensor", terms: list[tuple["Tensor", "Tensor", float]], dtype: "TorchDtype") -> "Tensor":
    """weight + the sum of scale * left @ right in float32, rounded to `dtype`.

    `weight` is (rows, columns); each term is a left (rows, rank), a right (rank, columns) and a scale. A row to which
    nothing is added, as its rows of `left` are zero, keeps its bits: the sign of its zeros and its NaNs, too.
    """
    import torch

    is_zero = ~torch.stack([left.any(dim=1) for left, _, _ in terms]).any(dim=0)
    if bool(is_zero.all()):
        return weight.to(dtype)
    total = weight.to(torch.float32, copy=True)
    for left, right, scale in terms:
        total += (left @ right).mul_(scale)
    rounded = total.to(dtype)
    if bool(is_zero.any()):
        same_bytes = weight[is_zero].to(dtype).contiguous().view(torch.uint8)
        rounded.view(torch.uint8)[is_zero] = same_bytes
    return rounded


def _matrices(tensor: OutputTensor) -> list[StoredTensor]:
    """The source as matrices of rows: one, or one for each index of the first of three dimensions."""
    source = tensor.source
    if len(source.shape) != 3 or not tensor.products:
        return [source]
    num_bytes = source.num_bytes // source.shape[0]
    return [
        replace(source, shape=source.shape[1:], offset=source.offset + index * num_bytes, num_bytes=num_bytes)
        for index in range(source.shape[0])
    ]


def _matrix_tiles(
    tensor: OutputTensor, matrix: StoredTensor, index: int, norms: Norms
) -> Iterator[tuple["Tensor", "Tensor"]]:
    """Tiles of a matrix as they are stored or given back from quantisation, and as they are merged."""
    import torch

    dtype = getattr(torch, FLOAT_TYPES[tensor.dtype])
    products = tensor.products.get(index, ())

    def tiles() -> Iterator[tuple[int, "Tensor"]]:
        return _dequantized_tiles(tensor, matrix, norms) if tensor.quantization else _tiles(matrix)

    if tensor.shifts:
        weight = read_rows(matrix, 0, num_rows(matrix))
        total = weight.float() + sum(read_finite(values) * scale for values, scale in tensor.shifts)
        yield weight, total.to(dtype)
        return
    if not products:
        for _, weight in tiles():
            yield weight, weight.to(dtype)
        return
    terms = [(*factors(product, *matrix.shape), product.update.scale) for product in products]
    if products[0].update.magnitude:
        yield from _decomposed_tiles(tiles, products[0], terms[0], products[0].update.magnitude, dtype)
        return
    for start, weight in tiles():
        rows = [(left[start : start + len(weight)], right, scale) for left, right, scale in terms]
        yield weight, add_update(weight, rows, dtype)


def _decomposed_tiles(
    tiles: Callable[[], Iterator[tuple[int, "Tensor"]]],
    product: Product,
    term: tuple["Tensor", "Tensor", float],
    stored_magnitude: StoredTensor,
    dtype: "TorchDtype",
) -> Iterator[tuple["Tensor", "Tensor"]]:
    """Tiles of a matrix with DoRA: the magnitude over the norm of each output of W + scale * B @ A, times it."""
    import torch

    left, right, scale = term
    magnitude = read_finite(stored_magnitude)
    column_factor = None
    if product.is_transposed:
        squares = torch.zeros(right.shape[1], dtype=torch.float64)
        for start, weight in tiles():
            sums = weight.float() + (left[start : start + len(weight)] @ right) * scale
            squares += sums.double().square().sum(dim=0)
        column_factor = magnitude / squares.sqrt().float()
    for start, weight in tiles():
        stop = start + len(weight)
        sums = weight.float() + (left[start:stop] @ right) * scale
        if column_factor is None:
            factor = (magnitude[start:stop] / torch.linalg.norm(sums, dim=1))[:, None]
        else:
            factor = column_factor
        yield weight, (factor * sums).to(dtype)


def _replace_rows(rounded: "Tensor", tensor: OutputTensor, first_row: int) -> None:
    """Put the trained tokens that fall on this tile in their places."""
    for rows in tensor.rows:
        values = read_finite(rows.values)
        for index, token_id in enumerate(rows.token_ids):
            if first_row <= token_id < first_row + len(rounded):
                rounded[token_id - first_row] = values[index]


def _dequantized_tiles(tensor: OutputTensor, matrix: StoredTensor, norms: Norms) -> Iterator[tuple[int, "Tensor"]]:
    """Tiles of a matrix given back from quantisation, or as they are where they are only measured against it."""
    assert tensor.quantization is not None  # noqa: S101 - only a bug can break it
    rows, columns = matrix.shape
    wanted = max(1, TILE_BYTES * rows // matrix.num_bytes)
    step = rows_at_a_time(rows, columns, wanted, tensor.quantization)
    norms.quantization_square = 0.0
    for start in range(0, rows, step):
        weight = read_rows(matrix, start, min(rows, start + step))
        given_back = dequantized(weight, tensor.quantization)
        for first in range(0, len(weight), wanted):
            one, other = weight[first : first + wanted], given_back[first : first + wanted]
            norms.quantization_square += float((one.float() - other.float()).double().square().sum())
            yield start + first, other if tensor.is_dequantized else one


def _tiles(source: StoredTensor) -> Iterator[tuple[int, "Tensor"]]:
    """The first row and the values of every tile."""
    rows = num_rows(source)
    step = max(1, TILE_BYTES * rows // max(1, source.num_bytes))
    for start in range(0, rows, step):
        yield start, read_rows(source, start, min(rows, start + step))


def _check_finite(rounded: "Tensor", weight: "Tensor", tensor: OutputTensor) -> None:
    """Raise where a value is not finite that was finite in the base."""
    import torch

    if prod(rounded.shape) == 0 or bool(torch.isfinite(torch.stack(torch.aminmax(rounded))).all()):
        return
    if bool((~torch.isfinite(rounded) & torch.isfinite(weight)).any()):
        raise MergeError(
            f'values of "{tensor.name}" do not fit {FLOAT_TYPES[tensor.dtype]}', fix="use --dtype bfloat16 or float32"
        )
