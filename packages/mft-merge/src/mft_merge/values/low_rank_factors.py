"""The two factors of what is added to one stored matrix, read from the adapter's file."""

from functools import lru_cache
from typing import TYPE_CHECKING

from mft_merge.errors import MergeError
from mft_merge.files.tensor_file import StoredTensor, num_rows, read_rows
from mft_merge.planning.plan import OutputTensor, Product

if TYPE_CHECKING:
    from torch import Tensor


def factors(product: Product, rows: int, columns: int) -> tuple["Tensor", "Tensor"]:
    """The (rows, rank) and (rank, columns) factors in float32; their product times the scale is what is added."""
    update = product.update
    a, b = read_finite(update.a), read_finite(update.b)
    if update.num_experts > 1:
        a = a[product.expert * update.rank : (product.expert + 1) * update.rank]
        b = b.reshape(b.shape[0], update.rank, update.num_experts)[:, :, product.expert]
    left, right = (a.T, b.T) if product.is_transposed else (b, a)
    num_live_rows, num_live_columns = (columns, rows) if product.is_crossed else (rows, columns)
    left = left[product.first_row : product.first_row + num_live_rows]
    right = right[:, product.first_column : product.first_column + num_live_columns]
    if product.is_crossed:
        left, right = right.T, left.T
    return left.contiguous(), right.contiguous()


def update_norm(tensor: OutputTensor) -> float | None:
    """The Frobenius norm of all that is added to a tensor, from its factors; None where it is more than low-rank."""
    import torch

    if tensor.rows or tensor.shifts or tensor.combination or not tensor.products:
        return None
    square = 0.0
    for products in tensor.products.values():
        if any(product.update.magnitude for product in products):
            return None
        terms = [
            (product.update.scale, *(side.double() for side in factors(product, *tensor.source.shape[-2:])))
            for product in products
        ]
        for scale, left, right in terms:
            for other_scale, other_left, other_right in terms:
                square += float(scale * other_scale * torch.sum((left.T @ other_left) * (right @ other_right.T)))
    return max(square, 0.0) ** 0.5


@lru_cache(maxsize=8)  # the tensors of all experts are read anew for each of them otherwise
def read_finite(tensor: StoredTensor) -> "Tensor":
    """A whole adapter tensor as float32; one that is not finite is an error."""
    import torch

    values = read_rows(tensor, 0, num_rows(tensor)).float()
    if not bool(torch.isfinite(values).all()):
        raise MergeError(f'adapter tensor "{tensor.name}" has values that are not finite', where=str(tensor.path))
    return values
