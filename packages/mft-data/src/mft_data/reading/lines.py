"""The lines of plain and compressed files, from any byte on, counted and digested as they are read."""

from __future__ import annotations

import gzip
import hashlib
import zlib
from io import BytesIO
from typing import TYPE_CHECKING, Any, BinaryIO

from mft_data.errors import DataError
from mft_data.reading.json_array import array_lines
from mft_data.reading.tables import is_table, table_lines

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from io import BufferedReader
    from pathlib import Path

BLOCK_BYTES = 1 << 20
DIGEST_BYTES = 16


def new_digest() -> hashlib.blake2b:
    """What digests the lines of a span."""
    return hashlib.blake2b(digest_size=DIGEST_BYTES)


def is_streamed_file(path: Path) -> bool:
    """Whether a file has to be read from its beginning, since its lines are made of something else, by its name."""
    return path.name.endswith((".gz", ".zst", ".json")) or is_table(path)


class SpanLines:
    """The lines of an uncompressed file that begin in bytes [start, stop), or those of a content.

    Iterating gives the number, from 1 at the start, and the bytes of each line that is not blank. When it is done,
    `num_lines` and `digest` are of all lines, blank ones too.
    """

    def __init__(self, path: Path, start: int, stop: int, content: bytes | None = None) -> None:
        self.path, self.start, self.stop, self.content = path, start, stop, content
        self.num_lines = 0
        self.hash = new_digest()

    def __iter__(self) -> Iterator[tuple[int, bytes]]:
        if self.content is not None:
            yield from self.counted(BytesIO(self.content))
            return
        with self.path.open("rb") as raw:
            yield from self.counted(span_lines(raw, self.start, self.stop))

    def counted(self, lines: Iterable[bytes]) -> Iterator[tuple[int, bytes]]:
        """The lines that are not blank, with their numbers; notes all of them."""
        for line in lines:
            self.num_lines += 1
            self.hash.update(line)
            if not line.isspace():
                yield self.num_lines, line

    @property
    def digest(self) -> str:
        """Hex digest of the lines read so far."""
        return self.hash.hexdigest()


def read_lines(path: Path) -> Iterator[tuple[int, bytes]]:
    """Number, from 1, and bytes of each line of a file that is not blank; raises DataError."""
    with path.open("rb") as raw:
        for number, line in enumerate(whole_lines(path, raw), start=1):
            if not line.isspace():
                yield number, line


def span_lines(raw: BufferedReader, start: int, stop: int) -> Iterator[bytes]:
    """The lines of an uncompressed file that begin in bytes [start, stop)."""
    position = start
    if start:
        raw.seek(start - 1)
        # No further than `stop`: a line may be longer than many spans.
        position += len(raw.readline(stop - start + 1)) - 1
    while position < stop and (line := raw.readline()):
        position += len(line)
        yield line


def lines_before(path: Path, start: int) -> int:
    """How many lines of a file begin before byte `start`."""
    count, remaining = 0, start
    with path.open("rb") as raw:
        block = b"\n"
        while remaining and (block := raw.read(min(BLOCK_BYTES, remaining))):
            count += block.count(b"\n")
            remaining -= len(block)
    # A line that began earlier and goes on past `start` counts too.
    return count + (start > 0 and not block.endswith(b"\n"))


def whole_lines(path: Path, raw: Any) -> Iterator[bytes]:
    """The lines of an open file, made of what it holds as its name says; raises DataError.

    A table is read by its name, and not from `raw`.
    """
    try:
        if is_table(path):
            yield from table_lines(path)
        elif path.name.endswith(".json"):
            yield from array_lines(path, raw)
        elif path.name.endswith(".gz"):
            yield from gzip.GzipFile(fileobj=raw)
        elif path.name.endswith(".zst"):
            yield from zstd_lines(path, raw)
        else:
            yield from raw
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise DataError(f"the gzip file is damaged ({error})", where=str(path)) from error


def zstd_lines(path: Path, raw: BinaryIO) -> Iterator[bytes]:
    """The lines of one or more zstd frames; a file that ends inside a frame raises DataError."""
    import zstandard

    rest: list[bytes] = []  # pieces of a line that goes on
    frame = None
    try:
        while compressed := raw.read(BLOCK_BYTES):
            while compressed:
                frame = frame or zstandard.ZstdDecompressor().decompressobj()
                first, *others = frame.decompress(compressed).split(b"\n")
                rest.append(first)
                if others:
                    yield b"".join(rest) + b"\n"
                    *lines, last = others
                    yield from (line + b"\n" for line in lines)
                    rest = [last]
                compressed = b""
                if frame.eof:
                    compressed, frame = frame.unused_data, None
    except zstandard.ZstdError as error:
        raise DataError(f"the zstd file is damaged ({error})", where=str(path)) from error
    if frame is not None:
        raise DataError("the zstd file is cut short", where=str(path))
    if line := b"".join(rest):
        yield line
