"""The lines of plain and compressed files, from any byte on."""

import gzip
import zlib
from collections.abc import Iterator
from io import BufferedReader
from pathlib import Path

from mft_data.errors import DataError

BLOCK_BYTES = 1 << 20


def read_lines(path: Path, start: int = 0, stop: int | None = None) -> Iterator[tuple[int, bytes]]:
    """Number and bytes of each line that is not blank and begins in bytes [start, stop); raises DataError.

    Numbers count from 1 at `start`; add `lines_before(path, start)` for those of the file. A compressed file, told
    by its suffix, is read as a whole.
    """
    with path.open("rb") as raw:
        try:
            lines = decompressed_lines(path, raw) if stop is None else span_lines(raw, start, stop)
            for number, line in enumerate(lines, start=1):
                if not line.isspace():
                    yield number, line
        except (EOFError, zlib.error, gzip.BadGzipFile) as error:
            raise DataError(f"the gzip file is damaged ({error})", where=str(path)) from error


def span_lines(raw: BufferedReader, start: int, stop: int) -> Iterator[bytes]:
    """The lines of an uncompressed file that begin in bytes [start, stop)."""
    position = start
    if start:
        raw.seek(start - 1)
        position += len(raw.readline()) - 1
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


def decompressed_lines(path: Path, raw: BufferedReader) -> Iterator[bytes]:
    """The lines of an open file."""
    if path.name.endswith(".gz"):
        return iter(gzip.GzipFile(fileobj=raw))
    if path.name.endswith(".zst"):
        return zstd_lines(path, raw)
    return iter(raw)


def zstd_lines(path: Path, raw: BufferedReader) -> Iterator[bytes]:
    """The lines of one or more zstd frames; a file that ends inside a frame raises DataError."""
    import zstandard

    rest = b""
    frame = None
    try:
        while compressed := raw.read(BLOCK_BYTES):
            while compressed:
                frame = frame or zstandard.ZstdDecompressor().decompressobj()
                *lines, rest = (rest + frame.decompress(compressed)).split(b"\n")
                yield from (line + b"\n" for line in lines)
                compressed = b""
                if frame.eof:
                    compressed, frame = frame.unused_data, None
    except zstandard.ZstdError as error:
        raise DataError(f"the zstd file is damaged ({error})", where=str(path)) from error
    if frame is not None:
        raise DataError("the zstd file is cut short", where=str(path))
    if rest:
        yield rest
