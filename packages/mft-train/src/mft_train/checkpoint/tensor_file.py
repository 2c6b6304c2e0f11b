"""Files of tensors in the safetensors format, written so that training goes on meanwhile.

The safetensors library keeps Python's interpreter lock for as long as it writes; here the bytes of a tensor go to the
file without it. What is written is what that library writes, byte for byte.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import orjson

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    import torch
    from torch import Tensor

HEADER_ALIGNMENT = 8


def write_tensors(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> None:
    """Writes tensors of the CPU with the file's metadata; raises OSError."""
    import torch

    names = format_names()
    # Wide numbers first keep every tensor aligned to its own.
    ordered = sorted(tensors.items(), key=lambda item: (-list(names).index(item[1].dtype), item[0]))
    header: dict[str, object] = {"__metadata__": dict(metadata)} if metadata else {}
    offset = 0
    for name, tensor in ordered:
        end = offset + tensor.numel() * tensor.element_size()
        header[name] = {"dtype": names[tensor.dtype], "shape": list(tensor.shape), "data_offsets": [offset, end]}
        offset = end
    text = orjson.dumps(header)
    text += b" " * (-len(text) % HEADER_ALIGNMENT)
    with path.open("wb", buffering=0) as file:
        write_all(file.fileno(), len(text).to_bytes(8, "little") + text)
        for _, tensor in ordered:
            write_all(file.fileno(), memoryview(tensor.contiguous().reshape(-1).view(torch.uint8).numpy()))


def write_all(descriptor: int, content: bytes | memoryview) -> None:
    """Writes all bytes, in as many calls as it takes: Linux takes 2 GiB at most in one."""
    rest = memoryview(content)
    while rest:
        rest = rest[os.write(descriptor, rest[: 1 << 28]) :]


def format_names() -> dict[torch.dtype, str]:
    """The format's name of every type of numbers, in the format's order."""
    import torch

    return {
        torch.bool: "BOOL",
        torch.uint8: "U8",
        torch.int8: "I8",
        torch.float8_e5m2: "F8_E5M2",
        torch.float8_e4m3fn: "F8_E4M3",
        torch.int16: "I16",
        torch.uint16: "U16",
        torch.float16: "F16",
        torch.bfloat16: "BF16",
        torch.int32: "I32",
        torch.uint32: "U32",
        torch.float32: "F32",
        torch.float64: "F64",
        torch.int64: "I64",
        torch.uint64: "U64",
    }
