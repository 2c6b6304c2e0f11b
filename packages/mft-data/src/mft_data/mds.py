"""Reads single rows of an MDS stream without loading the streaming library."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import orjson

from mft_data.errors import DataError

if TYPE_CHECKING:
    from pathlib import Path


def read_row(stream_dir: Path, row: int) -> dict[str, Any]:
    """The sample at position `row` of an uncompressed stream, as columns; raises DataError."""
    index_path = stream_dir / "index.json"
    try:
        shards = orjson.loads(index_path.read_bytes())["shards"]
        for shard in shards:
            if row < shard["samples"]:
                return read_sample(stream_dir / shard["raw_data"]["basename"], shard, row)
            row -= shard["samples"]
    except (orjson.JSONDecodeError, KeyError, TypeError, ValueError, IndexError) as error:
        raise DataError("the rows cannot be read", where=str(stream_dir), fix="build the dataset anew") from error
    raise DataError("there is no such row", where=str(stream_dir))


def read_sample(shard_path: Path, shard: dict[str, Any], sample: int) -> dict[str, Any]:
    """One sample of a shard file: a count, the samples' offsets, a header, the samples."""
    with shard_path.open("rb") as handle:
        handle.seek(4 + 4 * sample)
        begin, end = np.frombuffer(handle.read(8), np.uint32).tolist()
        handle.seek(begin)
        content = handle.read(end - begin)
    # The sizes of columns without a fixed one come first, then all columns in the order of their names.
    position = 4 * shard["column_sizes"].count(None)
    variable_sizes = iter(np.frombuffer(content[:position], np.uint32).tolist())
    columns = {}
    for name, encoding, fixed_size in zip(
        shard["column_names"], shard["column_encodings"], shard["column_sizes"], strict=True
    ):
        size = fixed_size or next(variable_sizes)
        columns[name] = decode_column(encoding, content[position : position + size])
        position += size
    return columns


def decode_column(encoding: str, content: bytes) -> Any:
    """The value of a column: an int, or a 1-D array behind a byte that tells how its length is stored."""
    if encoding == "int":
        return int.from_bytes(content, "little", signed=True)
    length_bytes = 1 << (content[0] & 3)
    return np.frombuffer(content[1 + length_bytes :], encoding.removeprefix("ndarray:"))
