"""The two factors of what is added to one stored matrix, read from the adapter's file."""

from functools import lru_cache
from typing import TYPE_CHECKING

from mft_merge.errors import MergeError
from mft_merge.plan import Product
from mft_merge.tensor_file import StoredTensor, num_rows, read_rows

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


@lru_cache(maxsize=8)  # the tensors of all experts are read anew for each of them otherwise
def read_finite(tensor: StoredTensor) -> "Tensor":
    """A whole adapter tensor as float32; one that is not finite is an error."""
    import torch

    values = read_rows(tensor, 0, num_rows(tensor)).float()
    if not bool(torch.isfinite(values).all()):
        raise MergeError(f'adapter tensor "{tensor.name}" has values that are not finite', where=str(tensor.path))
    return values
