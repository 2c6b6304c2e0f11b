"""One look at a whole file: its digest, and those of the lines that each chunk of a build has to find in it."""

from __future__ import annotations

import hashlib
import os
from dataclasses import dataclass
from typing import TYPE_CHECKING

from mft_data.errors import DataError
from mft_data.reading.lines import BLOCK_BYTES, new_digest

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path


@dataclass(frozen=True, slots=True)
class FileSurvey:
    """What was found in a file: `digests` has one for the lines that begin in each of its spans, None if compressed."""

    sha256: str
    num_lines: int
    digests: list[str] | None


def survey_file(path: Path, size_bytes: int, starts: Sequence[int]) -> FileSurvey:
    """The survey of an uncompressed file whose spans begin at `starts`, the first at 0.

    Raises DataError if the file has another size than when the build was planned.
    """
    whole, span, digests = hashlib.sha256(), new_digest(), []
    num_lines = position = 0
    is_line_open = False
    cuts = list(starts[1:])
    for block in blocks(path, size_bytes):
        whole.update(block)
        num_lines += block.count(b"\n")
        is_line_open = not block.endswith(b"\n")
        done = 0
        # A span begins with the line after the first newline at or behind the byte before its start.
        while cuts and (newline := block.find(b"\n", max(cuts[0] - 1 - position, 0))) >= 0:
            span.update(block[done : newline + 1])
            digests.append(span.hexdigest())
            span, done = new_digest(), newline + 1
            cuts.pop(0)
        span.update(block[done:])
        position += len(block)
    digests.append(span.hexdigest())
    digests += [new_digest().hexdigest() for _ in cuts]
    return FileSurvey(whole.hexdigest(), num_lines + is_line_open, digests)


def blocks(path: Path, size_bytes: int) -> Iterator[bytes]:
    """The content of a file in blocks; raises DataError unless it has so many bytes."""
    with path.open("rb") as raw:
        found = os.fstat(raw.fileno()).st_size
        while block := raw.read(BLOCK_BYTES):
            yield block
        if found != size_bytes or raw.tell() != size_bytes:
            raise changed_file(str(path))


def changed_file(path: str) -> DataError:
    """The error for a file that is not the one that a build began with."""
    return DataError(
        "the file has changed since the build began", where=path, fix="build anew, from files that stay as they are"
    )
