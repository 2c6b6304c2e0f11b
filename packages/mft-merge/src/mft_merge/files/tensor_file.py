"""The safetensors file: its header read first, its payloads streamed at their offsets."""

import ctypes
import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, Any

import orjson

from mft_merge.errors import MergeError

if TYPE_CHECKING:
    from torch import Tensor

# The safetensors code of every type that a merge can compute with, and torch's name for it.
FLOAT_TYPES = {"F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16"}
ITEM_BYTES = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2}
CHUNK_BYTES = 1 << 20
LONGEST_HEADER_BYTES = 100_000_000


@dataclass(frozen=True, slots=True)
class StoredTensor:
    """Where one tensor lies: `offset` is absolute in the file at `path`, `dtype` is a safetensors code."""

    path: Path
    name: str
    dtype: str
    shape: tuple[int, ...]
    offset: int
    num_bytes: int


@dataclass(frozen=True, slots=True)
class TensorFile:
    """A safetensors file without its payloads; `tensors` is in the order of the payloads."""

    path: Path
    header: bytes
    metadata: dict[str, str]
    tensors: dict[str, StoredTensor]


def read_tensor_file(path: Path) -> TensorFile:
    """The header of the safetensors file at `path`, checked against the size of the file."""
    file_bytes = path.stat().st_size
    with path.open("rb") as stream:
        header_bytes = int.from_bytes(stream.read(8), "little")
        if file_bytes < 8 or header_bytes > min(LONGEST_HEADER_BYTES, file_bytes - 8):
            raise _corrupt(path, "its header is cut short")
        header = stream.read(header_bytes)
    try:
        entries: dict[str, Any] = orjson.loads(header)
        metadata = entries.pop("__metadata__", None) or {}
        spans = sorted((entry["data_offsets"], name) for name, entry in entries.items())
        tensors = {
            name: StoredTensor(
                path, name, entries[name]["dtype"], tuple(entries[name]["shape"]), 8 + header_bytes + start, end - start
            )
            for (start, end), name in spans
        }
    except (orjson.JSONDecodeError, AttributeError, KeyError, TypeError, ValueError) as error:
        raise _corrupt(path, "its header does not parse") from error
    position = 8 + header_bytes
    for tensor in tensors.values():
        item_bytes = ITEM_BYTES.get(tensor.dtype)
        if tensor.offset != position or (item_bytes and item_bytes * prod(tensor.shape) != tensor.num_bytes):
            raise _corrupt(path, f'its tensor "{tensor.name}" does not fit its place')
        position += tensor.num_bytes
    if position != file_bytes:
        raise _corrupt(path, f"it has {file_bytes} bytes instead of {position}")
    return TensorFile(path, header, metadata, tensors)


def read_rows(tensor: StoredTensor, start: int, stop: int) -> "Tensor":
    """Rows [start, stop) of a tensor of a type in FLOAT_TYPES, in that type."""
    import torch

    row_bytes = tensor.num_bytes // max(1, num_rows(tensor))
    values = torch.empty(stop - start, *tensor.shape[1:], dtype=getattr(torch, FLOAT_TYPES[tensor.dtype]))
    left, position = memory_of(values), tensor.offset + start * row_bytes
    descriptor = os.open(tensor.path, os.O_RDONLY)
    try:
        while len(left):  # a call reads 2 GiB at most
            num_read = os.preadv(descriptor, [left], position)
            if not num_read:
                raise _corrupt(tensor.path, "it was cut short while being read")
            left, position = left[num_read:], position + num_read
    finally:
        os.close(descriptor)
    return values


def num_rows(tensor: StoredTensor) -> int:
    """The length of the first dimension; a scalar counts as one row."""
    return tensor.shape[0] if tensor.shape else 1


def payload_chunks(tensor: StoredTensor, start: int = 0) -> Iterator[bytes]:
    """The bytes of one payload from `start`, a chunk at a time."""
    with tensor.path.open("rb") as stream:
        stream.seek(tensor.offset + start)
        left = tensor.num_bytes - start
        while left:
            chunk = stream.read(min(left, CHUNK_BYTES))
            if not chunk:
                raise _corrupt(tensor.path, "it was cut short while being read")
            left -= len(chunk)
            yield chunk


def make_header(tensors: Iterable[tuple[str, str, tuple[int, ...], int]], metadata: dict[str, str]) -> bytes:
    """A safetensors header for tensors (name, dtype, shape, bytes) whose payloads follow in the order given."""
    entries: dict[str, Any] = {"__metadata__": metadata} if metadata else {}
    position = 0
    for name, dtype, shape, num_bytes in tensors:
        entries[name] = {"dtype": dtype, "shape": shape, "data_offsets": [position, position + num_bytes]}
        position += num_bytes
    header = orjson.dumps(entries)
    return header + b" " * (-len(header) % 8)


def memory_of(values: "Tensor") -> memoryview:
    """The memory of a contiguous tensor on the CPU, which must outlive the view."""
    num_bytes = values.numel() * values.element_size()
    return memoryview((ctypes.c_char * num_bytes).from_address(values.data_ptr())).cast("B")


def _corrupt(path: Path, what: str) -> MergeError:
    return MergeError(f"broken safetensors file: {what}", where=str(path), fix="copy or save it again")
