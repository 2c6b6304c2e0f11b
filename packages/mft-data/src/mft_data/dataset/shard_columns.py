"""The rows of a whole shard at once, column by column, without the streaming library."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import orjson

if TYPE_CHECKING:
    from pathlib import Path

INT_BYTES = 8
LENGTH_DTYPES = ("u1", "<u2", "<u4", "<u8")
ARRAY_DTYPES = {"ndarray:uint8": "u1", "ndarray:uint16": "<u2", "ndarray:uint32": "<u4", "ndarray:float32": "<f4"}


class ShardError(ValueError):
    """Why the bytes of a shard or of an index make no sense; whoever reads the file adds its name."""


@dataclass(frozen=True, slots=True)
class ShardEntry:
    """What an index says of one shard."""

    name: str
    num_bytes: int
    sha256: str
    num_rows: int
    description: dict[str, Any]  # of the columns; the shard repeats it


@dataclass(frozen=True, slots=True)
class Shard:
    """The bytes of a shard, and where the columns of its rows lie in them."""

    content: memoryview
    num_rows: int
    description: dict[str, Any]
    encodings: dict[str, str]
    begins: dict[str, np.ndarray]  # of each column, (rows,) int64
    ends: dict[str, np.ndarray]


@dataclass(frozen=True, slots=True)
class Arrays:
    """The arrays of all rows of a column, end to end; those of row i are values[bounds[i] : bounds[i + 1]]."""

    values: np.ndarray
    bounds: np.ndarray  # (rows + 1,) int64

    @property
    def lengths(self) -> np.ndarray:
        """The length of each row's array: (rows,) int64."""
        return np.diff(self.bounds)

    def rows_of(self, positions: np.ndarray) -> np.ndarray:
        """The rows that the values at these positions belong to, each once."""
        return np.unique(np.searchsorted(self.bounds, positions, side="right") - 1)


def parse_index(content: bytes) -> list[ShardEntry]:
    """The shards that an index.json lists; raises ShardError."""
    try:
        return [parse_entry(entry) for entry in orjson.loads(content)["shards"]]
    except (KeyError, TypeError, ValueError) as error:
        raise ShardError("the index is damaged") from error


def parse_entry(entry: dict[str, Any]) -> ShardEntry:
    """One shard of an index; raises KeyError, TypeError or ValueError."""
    raw_data = entry["raw_data"]
    name, num_bytes, num_rows, sha256 = (
        raw_data["basename"],
        raw_data["bytes"],
        entry["samples"],
        raw_data["hashes"]["sha256"],
    )
    if [type(field) for field in (name, num_bytes, num_rows, sha256)] != [str, int, int, str]:
        raise TypeError("a field has another type")
    if not is_file_name(name):
        raise ValueError("the name of a shard is none")
    if entry["zip_data"] is not None:
        raise ValueError("the shard is compressed")
    description = {key: value for key, value in entry.items() if key not in ("raw_data", "samples", "zip_data")}
    return ShardEntry(name, num_bytes, sha256, num_rows, description)


def is_file_name(name: str) -> bool:
    """Whether a name stays inside its folder, and on one line of an error."""
    return name.isprintable() and "/" not in name and name not in ("", ".", "..")


def parse_shard(content: Any) -> Shard:
    """The shard in a buffer (bytes, or an array of them); raises ShardError.

    The layout is that of mds.py; every offset and size in it is checked here.
    """
    view = memoryview(content)
    num_rows = int.from_bytes(view[:4], "little")
    if num_rows < 1 or len(view) < 4 * (num_rows + 2):
        raise ShardError("the shard has no rows, or is cut short")
    offsets = np.frombuffer(view, "<u4", num_rows + 1, offset=4).astype(np.int64)
    header_begin = 4 * (num_rows + 2)
    if offsets[0] < header_begin or offsets[-1] != len(view) or (np.diff(offsets) < 0).any():
        raise ShardError("the rows do not lie where the shard says")
    try:
        description = orjson.loads(view[header_begin : offsets[0]])
        encodings = dict(zip(description["column_names"], description["column_encodings"], strict=True))
        if not set(encodings.values()) <= {"int", *ARRAY_DTYPES}:
            raise ValueError("an encoding is unknown")
    except (KeyError, TypeError, ValueError) as error:
        raise ShardError("the description of the columns is damaged") from error
    begins, ends = column_borders(view, offsets, encodings)
    return Shard(view, num_rows, description, encodings, begins, ends)


def column_borders(
    view: memoryview, offsets: np.ndarray, encodings: dict[str, str]
) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """Where each column of each row begins and ends; raises ShardError."""
    arrays = [name for name, encoding in encodings.items() if encoding != "int"]
    row_begins, row_ends = offsets[:-1], offsets[1:]
    head_bytes = 4 * len(arrays)
    if (row_ends - row_begins < head_bytes).any():
        raise ShardError("a row is cut short")
    heads = fixed_fields(view, row_begins, head_bytes).view("<u4")
    sizes = dict(zip(arrays, heads.astype(np.int64).T, strict=True))
    begins, ends = {}, {}
    position = row_begins + head_bytes
    for name in encodings:
        begins[name] = position
        position = ends[name] = position + sizes.get(name, INT_BYTES)
    if (position != row_ends).any():
        raise ShardError("the columns of a row do not fill it")
    return begins, ends


def fixed_fields(view: memoryview, begins: np.ndarray, num_bytes: int) -> np.ndarray:
    """The bytes from each of these positions on: (positions, num_bytes) uint8."""
    return np.frombuffer(view, np.uint8)[begins[:, None] + np.arange(num_bytes)]


def stretches(view: memoryview, begins: np.ndarray, ends: np.ndarray, dtype: str) -> np.ndarray:
    """The values between these positions, end to end."""
    # For long stretches, joining slices is some ten times as fast as indexing with an array of all positions.
    content = b"".join([view[begin:end] for begin, end in zip(begins.tolist(), ends.tolist(), strict=True)])
    return np.frombuffer(content, dtype)


def read_arrays(shard: Shard, name: str) -> Arrays:
    """The arrays of a column; raises ShardError unless each is one of one dimension, as long as it says it is."""
    encoding = shard.encodings.get(name)
    if encoding not in ARRAY_DTYPES:
        raise ShardError(f"there is no array column {name}")
    dtype = np.dtype(ARRAY_DTYPES[encoding])
    begins, ends = shard.begins[name], shard.ends[name]
    if (begins == ends).any():
        raise ShardError(f"an array of {name} is cut short")
    # The first byte: dimensions << 2 | log2 of the bytes that each dimension takes.
    kinds = fixed_fields(shard.content, begins, 1)[:, 0]
    value_begins = begins + 1 + (1 << (kinds & 3).astype(np.int64))
    num_bytes = ends - value_begins
    if (kinds >> 2 != 1).any() or (num_bytes < 0).any() or (num_bytes % dtype.itemsize).any():
        raise ShardError(f"an array of {name} is not a list of {dtype}")
    lengths = num_bytes // dtype.itemsize
    for log_bytes, length_dtype in enumerate(LENGTH_DTYPES):
        is_own = kinds & 3 == log_bytes
        stated = fixed_fields(shard.content, begins[is_own] + 1, 1 << log_bytes).view(length_dtype)[:, 0]
        if (stated != lengths[is_own]).any():
            raise ShardError(f"an array of {name} is not as long as it says")
    values = stretches(shard.content, value_begins, ends, ARRAY_DTYPES[encoding])
    return Arrays(values, np.concatenate([[0], np.cumsum(lengths)]))


def read_ints(shard: Shard, name: str) -> np.ndarray:
    """The numbers of a scalar column, (rows,) int64; raises ShardError."""
    if shard.encodings.get(name) != "int":
        raise ShardError(f"there is no number column {name}")
    return fixed_fields(shard.content, shard.begins[name], INT_BYTES).view("<i8")[:, 0]


def read_segment_lengths(stream_dir: Path) -> np.ndarray:
    """The tokens of every conversation of a stream, in order: (conversations,) uint32; raises ShardError or OSError.

    Touches no more of the shards than it needs.
    """
    entries = parse_index((stream_dir / "index.json").read_bytes())
    lengths = []
    for entry in entries:
        path = stream_dir / entry.name
        if not path.stat().st_size:
            raise ShardError(f"{entry.name} is empty")
        shard = parse_shard(np.memmap(path, np.uint8, mode="r"))
        lengths.append(read_arrays(shard, "segment_lengths").values)
    return np.concatenate(lengths) if lengths else np.empty(0, np.uint32)
