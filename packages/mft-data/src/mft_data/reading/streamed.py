"""Compressed files and tables read once, from one end to the other, and handed on in pieces of whole lines."""

from __future__ import annotations

import hashlib
import os
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, BinaryIO

from mft_data.reading.chunks import Chunk, Span
from mft_data.reading.lines import BLOCK_BYTES, whole_lines
from mft_data.reading.survey import FileSurvey, changed_file
from mft_data.reading.tables import is_table

if TYPE_CHECKING:
    from collections.abc import Iterator

    from mft_data.reading.sources import Source, SourceFile


class HashedFile:
    """An open file that digests what is read from it."""

    def __init__(self, raw: BinaryIO) -> None:
        self.raw = raw
        self.hash = hashlib.sha256()
        self.num_bytes = 0

    def read(self, size: int = -1) -> bytes:
        """The next bytes."""
        content = self.raw.read(size)
        self.hash.update(content)
        self.num_bytes += len(content)
        return content

    def drain(self) -> None:
        """Reads what is left."""
        while self.read(BLOCK_BYTES):
            pass


@dataclass(slots=True)
class Streamed:
    """The pieces of a streamed chunk, in order, by iterating; when that is done, what was found in its files."""

    source: Source
    chunk: Chunk
    piece_bytes: int
    surveys: dict[int, FileSurvey] = field(default_factory=dict)  # by the position of the file in the source
    num_pieces: int = 0

    def __iter__(self) -> Iterator[Chunk]:
        spans: list[Span] = []
        filled = told_bytes = read_bytes = 0
        for span in self.chunk.spans:
            file = self.source.files[span.file]
            with file.path.open("rb") as raw:
                begun = os.fstat(raw.fileno())
                hashed = HashedFile(raw)
                if is_table(file.path):
                    hashed.drain()  # its rows are read from anywhere in it
                for gathered in self.gathered(span.file, file, hashed, filled):
                    spans.append(gathered)
                    filled += len(gathered.content or b"")
                    if filled >= self.piece_bytes:
                        yield self.piece(spans, read_bytes + hashed.num_bytes - told_bytes)
                        told_bytes = read_bytes + hashed.num_bytes
                        spans, filled = [], 0
                hashed.drain()
                ended = file.path.stat()
                is_same = (begun.st_ino, begun.st_mtime_ns) == (ended.st_ino, ended.st_mtime_ns)
                if not is_same or hashed.num_bytes != file.size_bytes or ended.st_size != file.size_bytes:
                    raise changed_file(str(file.path))
            read_bytes += hashed.num_bytes
        if spans or not self.num_pieces:
            yield self.piece(spans, read_bytes - told_bytes)

    def piece(self, spans: list[Span], num_bytes: int) -> Chunk:
        """The next piece."""
        self.num_pieces += 1
        return replace(self.chunk, spans=tuple(spans), num_bytes=num_bytes, piece=self.num_pieces - 1)

    def gathered(self, position: int, file: SourceFile, hashed: HashedFile, filled: int) -> Iterator[Span]:
        """The lines of one file, so many to a span that a piece is full, the first beside `filled` bytes of others."""
        lines: list[bytes] = []
        start = num_bytes = num_lines = 0
        room = self.piece_bytes - filled
        for line in whole_lines(file.path, hashed):
            lines.append(line)
            num_bytes += len(line)
            if num_bytes >= room:
                yield Span(position, start, start + num_bytes, b"".join(lines), num_lines)
                num_lines += len(lines)
                start += num_bytes
                lines, num_bytes, room = [], 0, self.piece_bytes
        if lines or not start:
            yield Span(position, start, start + num_bytes, b"".join(lines), num_lines)
        self.surveys[position] = FileSurvey(hashed.hash.hexdigest(), num_lines + len(lines), None)
