"""The weights that a quantised base had while the adapter was trained: quantised and dequantised by bitsandbytes."""

from math import gcd
from typing import TYPE_CHECKING, Any

from mft_merge.errors import MergeError
from mft_merge.sources.quantization import ROW_TYPE, Quantization

if TYPE_CHECKING:
    from torch import Tensor

NUM_STEPS = 127  # in 8 bits the largest number of a row is so many of its steps


def dequantized(weight: "Tensor", quantization: Quantization, *, is_transposed: bool = False) -> "Tensor":
    """The weight as bitsandbytes gives it back, in the type it was loaded in.

    In 8 bits any stretch of rows will do. In 4 bits, with double quantisation, `weight` must be the whole tensor: the
    scales of all its blocks have one common offset; else a stretch of rows will do that is a multiple of the block
    size. Blocks go on across rows; bitsandbytes' kernel for CPUs gets them wrong where rows are no multiple of a block,
    so that it is given all as one row.

    A weight that `is_transposed` is (in, out), was quantised as (out, in), and must be whole.
    """
    import torch

    if is_transposed:
        return dequantized(weight.T.contiguous(), quantization).T.contiguous()
    functional = _functional()
    loaded = weight.to(getattr(torch, quantization.load_dtype))
    if quantization.kind == ROW_TYPE:
        steps, largest, _ = functional.int8_vectorwise_quant(loaded.to(torch.float16))
        return steps.to(loaded.dtype).mul_((largest / NUM_STEPS).to(loaded.dtype).unsqueeze(1))
    loaded = loaded.reshape(1, -1)
    packed, state = functional.quantize_4bit(
        loaded,
        blocksize=quantization.block_size,
        compress_statistics=quantization.is_double,
        quant_type=quantization.kind,
    )
    return functional.dequantize_4bit(packed, state).reshape(weight.shape)


def rows_at_a_time(
    num_rows: int, num_columns: int, wanted: int, quantization: Quantization, *, is_transposed: bool = False
) -> int:
    """How many rows of a matrix to dequantise at a time: about `wanted`, where blocks do not cross the border."""
    if quantization.is_double or is_transposed:
        return num_rows
    if quantization.kind == ROW_TYPE:
        return wanted
    step = quantization.block_size // gcd(num_columns, quantization.block_size)
    return min(num_rows, max(1, wanted // step) * step)


def _functional() -> Any:
    try:
        import bitsandbytes.functional
    except ImportError as error:
        raise MergeError(
            "the adapter was trained over a quantised base, and giving its weights back needs bitsandbytes",
            fix='install it with: pip install "mft-merge[qlora]", or take the full weights with --base-weights full',
        ) from error
    return bitsandbytes.functional
