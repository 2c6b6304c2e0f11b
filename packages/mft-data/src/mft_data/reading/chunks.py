"""The plan of a build: its input cut into chunks of whole lines, the same whoever works on them."""

from __future__ import annotations

import hashlib
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from mft_data.errors import DataError
from mft_data.reading.lines import is_streamed_file

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from mft_data.reading.sources import Source

MIN_CHUNK_BYTES = 2 << 20
# Text of so many rows at least goes into one chunk, so that few rows at its end are left unfilled.
CHUNK_ROWS = 256
BYTES_PER_TOKEN = 4
COMPRESSION_RATIO = 4
EDGE_BYTES = 1 << 16


@dataclass(frozen=True, slots=True)
class Span:
    """The lines of a task's file that begin in bytes [start, stop); `stop` None is a whole, compressed file.

    Where the lines were read by somebody else, `content` is all of them, and bytes are those of the decompressed file.
    """

    file: int
    start: int
    stop: int | None
    content: bytes | None = None
    lines_before: int | None = None  # None: nobody has counted


@dataclass(frozen=True, slots=True)
class Chunk:
    """A unit of work: lines of one task. `task` is the position in the plan's sources; `index` counts all chunks.

    A chunk with compressed files is streamed: read by one process, and worked on in pieces, counted by `piece`.
    """

    index: int
    task: int
    spans: tuple[Span, ...]
    num_bytes: int
    piece: int = 0

    @property
    def is_streamed(self) -> bool:
        """Whether the chunk has to be cut into pieces while it is read."""
        return chunk_is_streamed(self.spans)

    @property
    def key(self) -> tuple[int, int]:
        """Tells apart the pieces of all chunks, and orders them."""
        return self.index, self.piece


def chunk_is_streamed(spans: Sequence[Span]) -> bool:
    """Whether spans are of compressed files; no chunk has both kinds."""
    return spans[0].stop is None


def chunk_bytes(seq_length: int) -> int:
    """How much text goes into one chunk."""
    return max(MIN_CHUNK_BYTES, CHUNK_ROWS * BYTES_PER_TOKEN * seq_length)


def plan_chunks(sources: list[Source], seq_length: int) -> list[Chunk]:
    """Every line of every source in exactly one chunk, in the order of tasks, files and lines."""
    size = chunk_bytes(seq_length)
    chunks: list[Chunk] = []
    for task, source in enumerate(sources):
        spans: list[Span] = []
        filled = num_bytes = 0

        def close(task: int = task) -> None:
            nonlocal spans, filled, num_bytes
            if spans:
                chunks.append(Chunk(len(chunks), task, tuple(spans), num_bytes))
            spans, filled, num_bytes = [], 0, 0

        for position, file in enumerate(source.files):
            if spans and is_streamed_file(file.path) != chunk_is_streamed(spans):
                close()
            if is_streamed_file(file.path):
                spans.append(Span(position, 0, None))
                filled += file.size_bytes * COMPRESSION_RATIO
                num_bytes += file.size_bytes
                if filled >= size:
                    close()
                continue
            # An empty file has a span too: every file begins in one chunk.
            for start in cuts(file.size_bytes, size, filled):
                stop = min(file.size_bytes, start + size - filled)
                spans.append(Span(position, start, stop))
                filled += stop - start
                num_bytes += stop - start
                if filled >= size:
                    close()
        close()
    return chunks


def cuts(file_bytes: int, chunk_bytes: int, filled: int) -> list[int]:
    """Where the spans of a file start, if its first chunk has `filled` bytes from earlier files."""
    return [0, *range(chunk_bytes - filled, file_bytes, chunk_bytes)]


def file_starts(chunks: list[Chunk]) -> dict[tuple[int, int], list[int]]:
    """Where the spans of each uncompressed file start, by the positions of its source and of the file."""
    starts: dict[tuple[int, int], list[int]] = {}
    for chunk in chunks:
        for span in chunk.spans:
            if span.stop is not None:
                starts.setdefault((chunk.task, span.file), []).append(span.start)
    return starts


def source_documents(sources: list[Source]) -> list[dict[str, Any]]:
    """What identifies each source: its task, its split, its settings and its files, as JSON values."""
    return [
        {
            "task": source.task,
            "split": source.split,
            "settings": asdict(source.settings),
            "files": [
                {"file": file.name, "size_bytes": file.size_bytes, "edges_sha256": edges_sha256(file.path)}
                for file in source.files
            ],
        }
        for source in sources
    ]


def edges_sha256(path: Path) -> str:
    """Hex digest of a file's first and last 64 KiB: quick to get, and told apart from what a file grew or shrank to."""
    with path.open("rb") as handle:
        content = handle.read(EDGE_BYTES)
        handle.seek(max(0, path.stat().st_size - EDGE_BYTES))
        return hashlib.sha256(content + handle.read(EDGE_BYTES)).hexdigest()


def part_of(chunks: list[Chunk], part: int, num_parts: int) -> list[Chunk]:
    """The chunks of part `part` of `num_parts`, counted from 1: a contiguous range, none twice and none left out."""
    if not 1 <= part <= num_parts:
        raise DataError(f"there is no part {part} of {num_parts}", fix="parts count from 1")
    return [chunk for chunk in chunks if chunk.index * num_parts // len(chunks) == part - 1]
