"""The arithmetic of a merge: tiles of rows of W + scale * B @ A in float32, rounded once."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from math import isfinite
from typing import TYPE_CHECKING

from mft_merge.errors import MergeError
from mft_merge.files.tensor_file import FLOAT_TYPES, StoredTensor, num_rows, read_rows
from mft_merge.planning.plan import OutputTensor, Product
from mft_merge.values.combined import combined
from mft_merge.values.dequantized import dequantized, rows_at_a_time
from mft_merge.values.low_rank_factors import factors, read_finite

if TYPE_CHECKING:
    from torch import Tensor
    from torch import dtype as TorchDtype

# Stored bytes of one tile; about six times as much is in memory while it is merged. Small enough for a core's cache.
TILE_BYTES = 1 << 19
# The product of fewer rows than these is rounded otherwise than as a part of the whole.
FEWEST_ROWS = 4
# The first row of a tile, and what gives it as it was and as it is merged.
_Step = tuple[int, Callable[[], tuple["Tensor", "Tensor"]]]


@dataclass(slots=True)
class Norms:
    """The Frobenius norms, squared, of a tensor's change by quantisation."""

    quantization_square: float = 0.0


def merged_tiles(tensor: OutputTensor, norms: Norms) -> Iterator[Callable[[], "Tensor"]]:
    """The values of one output tensor in tiles of rows, each as a call that gives it in the output type.

    The calls may be made in any order and in several threads. `norms` is complete when the last one is handed out.
    """
    first_row = 0
    for index, matrix in enumerate(_matrices(tensor)):
        for start, step in _matrix_tiles(tensor, matrix, index, norms):
            yield partial(_finished_tile, tensor, step, first_row + start)
        first_row += num_rows(matrix)


def add_update(weight: "Tensor", terms: list[tuple["Tensor", "Tensor", float]], dtype: "TorchDtype") -> "Tensor":
    """weight + the sum of scale * left @ right in float32, rounded to `dtype`.

    `weight` is (rows, columns); each term is a left (rows, rank), a right (rank, columns) and a scale. A row to which
    nothing is added, as its rows of `left` are zero, keeps its bits: the sign of its zeros and its NaNs, too.
    """
    import torch

    is_changed = torch.stack([left.any(dim=1) for left, _, _ in terms]).any(dim=0)
    num_changed = int(is_changed.count_nonzero())
    if not num_changed:
        return weight.to(dtype)
    total = weight.to(torch.float32, copy=True)
    for left, right, scale in terms:
        if dtype.itemsize >= total.itemsize:
            total += (left @ right).mul_(scale)  # rounded as by PEFT, to the same bits
        else:
            total.addmm_(left, right, alpha=scale)
    rounded = total.to(dtype)
    if num_changed < len(weight):
        same_bytes = weight[~is_changed].to(dtype).contiguous().view(torch.uint8)
        rounded.view(torch.uint8)[~is_changed] = same_bytes
    return rounded


def _finished_tile(tensor: OutputTensor, step: Callable[[], tuple["Tensor", "Tensor"]], first_row: int) -> "Tensor":
    """The tile that a step gives, with the trained tokens in it and checked."""
    weight, rounded = step()
    _replace_rows(rounded, tensor, first_row)
    _check_finite(rounded, weight, tensor)
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


def _matrix_tiles(tensor: OutputTensor, matrix: StoredTensor, index: int, norms: Norms) -> Iterator[_Step]:
    """The first row of every tile of a matrix, and what gives the tile as it was and as it is merged."""
    import torch

    dtype = getattr(torch, FLOAT_TYPES[tensor.dtype])
    products = tensor.products.get(index, ())
    terms = [(*factors(product, *matrix.shape), product.update.scale) for product in products]

    def tiles() -> Iterator[tuple[int, Callable[[], "Tensor"]]]:
        return _dequantized_tiles(tensor, matrix, norms) if tensor.quantization else _tiles(matrix)

    if products and products[0].update.magnitude:
        yield from _decomposed_tiles(tiles, products[0], terms[0], products[0].update.magnitude, dtype)
        return

    if products and tensor.combination:
        weights = [product.weight for product in products]
        deltas = [(left @ right) * scale for left, right, scale in terms]
        layer, _, _ = products[0].update.a.name.partition(".lora_")
        delta = combined(layer, deltas, weights, tensor.combination)
        for start, read in tiles():
            yield start, partial(_shifted, read, delta, start, dtype)
        return

    def merged(read: Callable[[], "Tensor"], start: int) -> tuple["Tensor", "Tensor"]:
        weight = read()
        stop = start + num_rows(matrix) if not weight.shape else start + len(weight)
        if tensor.shifts:
            shift = sum(read_finite(values)[start:stop] * scale for values, scale in tensor.shifts)
            return weight, (weight.float() + shift).to(dtype)
        if not terms:
            return weight, weight.to(dtype)
        return weight, add_update(weight, [(left[start:stop], right, scale) for left, right, scale in terms], dtype)

    for start, read in tiles():
        yield start, partial(merged, read, start)


def _shifted(
    read: Callable[[], "Tensor"], delta: "Tensor", start: int, dtype: "TorchDtype"
) -> tuple["Tensor", "Tensor"]:
    """A tile and its sum with the rows of `delta` from `start`; where that is zero, the tile's value as it is."""
    import torch

    weight = read()
    part = delta[start : start + len(weight)]
    return weight, torch.where(part == 0, weight.to(dtype), (weight.float() + part).to(dtype))


def _decomposed_tiles(
    tiles: Callable[[], Iterator[tuple[int, Callable[[], "Tensor"]]]],
    product: Product,
    term: tuple["Tensor", "Tensor", float],
    stored_magnitude: StoredTensor,
    dtype: "TorchDtype",
) -> Iterator[_Step]:
    """Tiles of a matrix with DoRA: the magnitude over the norm of each output of W + scale * B @ A, times it."""
    import torch

    left, right, scale = term
    magnitude = read_finite(stored_magnitude)
    column_factor = None
    if product.is_transposed:
        squares = torch.zeros(right.shape[1], dtype=torch.float64)
        for start, read in tiles():
            weight = read()
            sums = weight.float() + (left[start : start + len(weight)] @ right) * scale
            squares += sums.double().square().sum(dim=0)
        column_factor = magnitude / squares.sqrt().float()

    def merged(read: Callable[[], "Tensor"], start: int) -> tuple["Tensor", "Tensor"]:
        weight = read()
        stop = start + len(weight)
        sums = weight.float() + (left[start:stop] @ right) * scale
        if column_factor is None:
            factor = (magnitude[start:stop] / torch.linalg.norm(sums, dim=1))[:, None]
        else:
            factor = column_factor
        return weight, (factor * sums).to(dtype)

    for start, read in tiles():
        yield start, partial(merged, read, start)


def _replace_rows(rounded: "Tensor", tensor: OutputTensor, first_row: int) -> None:
    """Put the trained tokens that fall on this tile in their places."""
    for rows in tensor.rows:
        values = read_finite(rows.values)
        for index, token_id in enumerate(rows.token_ids):
            if first_row <= token_id < first_row + len(rounded):
                rounded[token_id - first_row] = values[index]


def _dequantized_tiles(
    tensor: OutputTensor, matrix: StoredTensor, norms: Norms
) -> Iterator[tuple[int, Callable[[], "Tensor"]]]:
    """Tiles of a matrix given back from quantisation, or as they are where they are only measured against it."""
    assert tensor.quantization is not None  # noqa: S101 - only a bug can break it
    rows, columns = matrix.shape
    wanted = _rows_of_a_tile(matrix)
    is_transposed = tensor.is_quantized_transposed
    step = rows_at_a_time(rows, columns, wanted, tensor.quantization, is_transposed=is_transposed)
    norms.quantization_square = 0.0
    for start, stop in _spans(rows, step):
        weight = read_rows(matrix, start, stop)
        given_back = dequantized(weight, tensor.quantization, is_transposed=is_transposed)
        for first, last in _spans(len(weight), wanted):
            one, other = weight[first:last], given_back[first:last]
            norms.quantization_square += float((one.float() - other.float()).double().square().sum())
            yield start + first, partial(_itself, other if tensor.is_dequantized else one)


def _itself(weight: "Tensor") -> "Tensor":
    return weight


def _tiles(source: StoredTensor) -> Iterator[tuple[int, Callable[[], "Tensor"]]]:
    """The first row of every tile, and what reads it."""
    rows, step = num_rows(source), _rows_of_a_tile(source)
    for start, stop in _spans(rows, step):
        yield start, partial(read_rows, source, start, stop)


def _rows_of_a_tile(source: StoredTensor) -> int:
    return max(FEWEST_ROWS, TILE_BYTES * num_rows(source) // max(1, source.num_bytes))


def _spans(rows: int, step: int) -> Iterator[tuple[int, int]]:
    """(start, stop) of stretches of so many rows; a rest of too few joins the last of them."""
    start = 0
    while start < rows:
        stop = start + step if rows - start - step >= FEWEST_ROWS else rows
        yield start, stop
        start = stop


def _check_finite(rounded: "Tensor", weight: "Tensor", tensor: OutputTensor) -> None:
    """Raise where a value is not finite that was finite in the base."""
    import torch

    if isfinite(rounded.sum()):  # so are all its values; a sum alone may not be, and then they are looked at
        return
    if bool((~torch.isfinite(rounded) & torch.isfinite(weight)).any()):
        raise MergeError(
            f'values of "{tensor.name}" do not fit {FLOAT_TYPES[tensor.dtype]}', fix="use --dtype bfloat16 or float32"
        )
