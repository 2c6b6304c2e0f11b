"""The MDS format, as mosaicml-streaming defines it: rows to samples to shards and back, without loading that library.

A test holds every byte written here to be what streaming's own writer writes. A sample is the sizes of its columns
without a fixed one (uint32 each), then the columns in the order of their names. A shard is the number of its samples,
their offsets and the end (uint32 each), the description of the columns as JSON, and the samples.
"""

from __future__ import annotations

import hashlib
import json
import struct
from typing import TYPE_CHECKING, Any

import numpy as np
import orjson

from mft_data.errors import DataError

if TYPE_CHECKING:
    from collections.abc import Collection, Sequence
    from pathlib import Path

SHARD_BYTES = 1 << 26
INDEX = "index.json"
# Columns that a dataset may have, in the order of their names, which is behind that of the arrays of every row.
SEGMENT_SIDES, SEGMENT_WEIGHTS = "segment_sides", "segment_weights"
EXTRA_COLUMNS = {SEGMENT_SIDES: "ndarray:uint8", SEGMENT_WEIGHTS: "ndarray:float32"}
# What a segment is in SEGMENT_SIDES; a pair is a chosen one and right after it the rejected one.
ALONE, CHOSEN, REJECTED = 0, 1, 2
# Before the arrays of a row without extra columns, and after them.
SIZES, TASK_ID = struct.Struct("<3I"), struct.Struct("<q")
LENGTH_FORMATS = ("<BB", "<BH", "<BI", "<BQ")


def mds_columns(ids_dtype: str, extra: Collection[str] = ()) -> dict[str, str]:
    """Column names and MDS encodings of a row with these of EXTRA_COLUMNS."""
    return {
        "input_ids": f"ndarray:{ids_dtype}",
        "loss_mask": "ndarray:uint8",
        "segment_lengths": "ndarray:uint32",
        **{name: encoding for name, encoding in EXTRA_COLUMNS.items() if name in extra},
        "task_id": "int",
    }


def encode_sample(input_ids: np.ndarray, loss_mask: np.ndarray, segment_lengths: np.ndarray, task_id: int) -> bytes:
    """The MDS sample of one row without extra columns."""
    arrays = [encode_array(array) for array in (input_ids, loss_mask, segment_lengths)]
    return SIZES.pack(*map(len, arrays)) + b"".join(arrays) + TASK_ID.pack(task_id)


def with_extra(sample: bytes, columns: Sequence[np.ndarray]) -> bytes:
    """A sample with more columns, in the order of EXTRA_COLUMNS: a value for each of its segments in each."""
    arrays = [encode_array(column) for column in columns]
    sizes = sample[: SIZES.size] + struct.pack(f"<{len(arrays)}I", *map(len, arrays))
    return sizes + sample[SIZES.size : -TASK_ID.size] + b"".join(arrays) + sample[-TASK_ID.size :]


def num_segments_of(sample: bytes) -> int:
    """How many segments a sample without extra columns has."""
    ids_bytes, mask_bytes, _ = SIZES.unpack_from(sample)
    begin = SIZES.size + ids_bytes + mask_bytes
    return int(struct.unpack_from(LENGTH_FORMATS[sample[begin] & 3], sample, begin)[1])


def encode_array(array: np.ndarray) -> bytes:
    """A 1-D array: a byte that tells the number of dimensions and how the length is stored, the length, the values."""
    kind = 0 if len(array) < 1 << 8 else 1 if len(array) < 1 << 16 else 2 if len(array) < 1 << 32 else 3
    return struct.pack(LENGTH_FORMATS[kind], 1 << 2 | kind, len(array)) + array.tobytes()


class ShardWriter:
    """Writes samples to the shards of one stream, then its index; a stream without samples leaves no folder."""

    def __init__(self, stream_dir: Path, columns: dict[str, str]) -> None:
        self.stream_dir = stream_dir
        names = sorted(columns)
        self.config = {
            "column_encodings": [columns[name] for name in names],
            "column_names": names,
            "column_sizes": [8 if columns[name] == "int" else None for name in names],
            "compression": None,
            "format": "mds",
            "hashes": ["sha256"],
            "size_limit": SHARD_BYTES,
            "version": 2,
        }
        self.header = json.dumps(self.config, sort_keys=True).encode()
        self.shards: list[dict[str, Any]] = []
        self.start_shard()

    def start_shard(self) -> None:
        """Begins an empty shard."""
        self.samples: list[bytes] = []
        self.num_bytes = 8 + len(self.header)

    def write(self, sample: bytes) -> None:
        """Adds one sample; a full shard goes to disk first."""
        if self.samples and self.num_bytes + 4 + len(sample) > SHARD_BYTES:
            self.flush()
        self.samples.append(sample)
        self.num_bytes += 4 + len(sample)

    def flush(self) -> None:
        """Writes the current shard."""
        self.stream_dir.mkdir(parents=True, exist_ok=True)
        offsets = np.zeros(len(self.samples) + 1, np.uint32)
        np.cumsum([len(sample) for sample in self.samples], out=offsets[1:])
        offsets += np.uint32(4 + offsets.nbytes + len(self.header))
        content = b"".join((struct.pack("<I", len(self.samples)), offsets.tobytes(), self.header, *self.samples))
        name = f"shard.{len(self.shards):05}.mds"
        (self.stream_dir / name).write_bytes(content)
        raw_data = {"basename": name, "bytes": len(content), "hashes": {"sha256": hashlib.sha256(content).hexdigest()}}
        self.shards.append({**self.config, "raw_data": raw_data, "samples": len(self.samples), "zip_data": None})
        self.start_shard()

    def finish(self) -> str | None:
        """Writes what is left and the index; the hex digest of the index, or None without samples."""
        if self.samples:
            self.flush()
        if not self.shards:
            return None
        index = json.dumps({"version": 2, "shards": self.shards}, sort_keys=True).encode()
        (self.stream_dir / INDEX).write_bytes(index)
        return hashlib.sha256(index).hexdigest()


def read_row(stream_dir: Path, row: int) -> dict[str, Any]:
    """The sample at position `row` of an uncompressed stream, as columns; raises DataError."""
    index_path = stream_dir / INDEX
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
    """One sample of a shard file, as columns."""
    with shard_path.open("rb") as handle:
        handle.seek(4 + 4 * sample)
        begin, end = np.frombuffer(handle.read(8), np.uint32).tolist()
        handle.seek(begin)
        content = handle.read(end - begin)
    return decode_sample(content, shard)


def decode_sample(content: bytes, shard: dict[str, Any]) -> dict[str, Any]:
    """The columns of a sample; `shard` describes them as an index entry does."""
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
