"""What every worker of a build needs to know, and the texts of one chunk as conversations."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

from mft_data.errors import DataError, RecordError
from mft_data.reading.lines import lines_before, read_lines
from mft_data.reading.records import Reject, parse_line
from mft_data.rows.split import conversation_digest

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    import numpy as np

    from mft_data.encoding.template import Stretch
    from mft_data.reading.chunks import Chunk
    from mft_data.reading.conversation import Conversation
    from mft_data.reading.sources import Source


@dataclass(frozen=True, slots=True)
class Work:
    """The settings of a build as its workers see them; goes to other processes and machines."""

    sources: tuple[Source, ...]
    task_ids: tuple[int, ...]  # of each source
    formats: Mapping[tuple[int, int], str | None]  # by position of the source and of its file
    seq_length: int
    overlong: str  # drop, truncate or error
    packing: str
    seed: int
    validation_fraction: float
    max_rejects: int | None  # more in one chunk end the work early; None: any number
    problem_ngrams: np.ndarray | None  # of the benchmarks that no conversation may repeat
    drops_contaminated: bool


@dataclass(slots=True)
class Tally:
    """The records of a chunk: how many were read, and those refused."""

    read: int
    rejects: list[Reject]


class Record(NamedTuple):
    """An accepted record of a chunk: its number among those that are conversations, and where it stands."""

    number: int
    span: int
    line: int  # from 1 at the span's start
    conversation: Conversation
    digest: bytes
    stretches: list[Stretch]  # as the template renders it; empty if nobody asked


def read_chunk(
    work: Work, chunk: Chunk, tally: Tally, render: Callable[[Conversation], list[Stretch]] | None = None
) -> Iterator[Record]:
    """The accepted records of a chunk in order, rendered by `render`; counts all of them in `tally`.

    Raises DataError at once for a refused record where none may be; ends early if more are than the build allows.
    """
    source = work.sources[chunk.task]
    number = -1
    for span_number, span in enumerate(chunk.spans):
        file = source.files[span.file]
        record_format = work.formats[chunk.task, span.file]
        for line_number, line in read_lines(file.path, span.start, span.stop):
            tally.read += 1
            try:
                conversation = parse_line(line, record_format)
                number += 1
                stretches = render(conversation) if render else []
            except RecordError as error:
                place = line_number + lines_before(file.path, span.start)
                if work.max_rejects == 0:
                    raise DataError(error.reason, where=f"{file.path} line {place}", fix=error.fix) from error
                tally.rejects.append(Reject(source.task, file.name, place, error.reason))
                if work.max_rejects is not None and len(tally.rejects) > work.max_rejects:
                    return
                continue
            yield Record(number, span_number, line_number, conversation, conversation_digest(conversation), stretches)


def place_of(work: Work, chunk: Chunk, record: Record) -> str:
    """File and line of a record, for an error."""
    span = chunk.spans[record.span]
    path = work.sources[chunk.task].files[span.file].path
    return f"{path} line {record.line + lines_before(path, span.start)}"
