"""What every worker of a build needs to know, and the texts of one chunk as conversations."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple

from mft_data.errors import DataError, RecordError
from mft_data.reading.fields import quoted
from mft_data.reading.lines import SpanLines, lines_before
from mft_data.reading.records import checked_weight, parse_line
from mft_data.rows.split import conversation_digest, group_digest

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    import numpy as np

    from mft_data.encoding.encoder import Encoder
    from mft_data.encoding.template import Stretch
    from mft_data.reading.chunks import Chunk, Span
    from mft_data.reading.conversation import Conversation
    from mft_data.reading.sources import Source


# So many names of unused fields are kept: where keys are data there is no end to them.
MAX_UNUSED_FIELDS = 50
OTHER_FIELDS = "(others)"


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
    is_strict: bool  # whether records with unused fields are refused
    allows_rejects: bool  # else the first refused record ends the build
    problem_ngrams: np.ndarray | None  # of the benchmarks that no conversation may repeat
    drops_contaminated: bool


class Refusal(NamedTuple):
    """A refused record: the number of its span in the chunk, its line from 1 at the span's start, and why."""

    span: int
    line: int
    reason: str


@dataclass(slots=True)
class Tally:
    """What was read of a chunk: how many records, those refused, and lines and their digest of each span."""

    read: int = 0
    refusals: list[Refusal] = field(default_factory=list)
    num_lines: list[int] = field(default_factory=list)
    digests: list[str] = field(default_factory=list)
    unused_fields: Counter[str] = field(default_factory=Counter)  # records by field

    def add_unused(self, names: list[str], *, is_strict: bool) -> None:
        """Counts the unused fields of a record; raises RecordError if there may be none."""
        if is_strict:
            raise RecordError(f"field {quoted(names[0])} would not be used", fix="leave it out of the records")
        for name in names:
            known = name in self.unused_fields or len(self.unused_fields) < MAX_UNUSED_FIELDS
            self.unused_fields[name if known else OTHER_FIELDS] += 1


class Record(NamedTuple):
    """An accepted record of a chunk: its number among those accepted, and where it stands."""

    number: int
    span: int
    line: int  # from 1 at the span's start
    conversation: Conversation  # of a pair the prompt, the chosen and the rejected turns
    digest: bytes
    side: bytes  # equal ones go to the same split; as long as `digest`
    weight: float
    rendered: list[list[Stretch]]  # the conversation, or the chosen and the rejected one


def read_chunk(work: Work, chunk: Chunk, tally: Tally, encoder: Encoder) -> Iterator[Record]:
    """The accepted records of a chunk in order, rendered; counts all of them in `tally`.

    Raises DataError at once for a refused record where none may be.
    """
    settings = work.sources[chunk.task].settings
    render = encoder.renderer(settings)
    taken_extras = encoder.template.taken_extras
    number = -1
    for span_number, span in enumerate(chunk.spans):
        record_format = work.formats[chunk.task, span.file]
        lines = span_lines(work, chunk, span)
        for line_number, line in lines:
            tally.read += 1
            try:
                parsed = parse_line(line, record_format, settings, taken_extras)
                weight = parsed.weight
                weight = weight if settings.weight == 1 else checked_weight(weight * settings.weight)
                if parsed.unused_fields:
                    tally.add_unused(parsed.unused_fields, is_strict=work.is_strict)
                rendered = [render(conversation) for conversation in parsed.conversations]
            except RecordError as error:
                if not work.allows_rejects:
                    where = place_of(work, chunk, span_number, line_number)
                    raise DataError(error.reason, where=where, fix=error.fix) from error
                tally.refusals.append(Refusal(span_number, line_number, error.reason))
                continue
            number += 1
            conversation = parsed.conversation
            side = digest = conversation_digest(conversation)
            if parsed.group is not None:
                side = group_digest(parsed.group)
            elif settings.validation_group is not None:
                side = conversation_digest(parsed.prompt)
            yield Record(number, span_number, line_number, conversation, digest, side, weight, rendered)
        tally.num_lines.append(lines.num_lines)
        tally.digests.append(lines.digest)


def span_lines(work: Work, chunk: Chunk, span: Span) -> SpanLines:
    """The lines of one span of a chunk."""
    if span.stop is None:
        raise ValueError("a streamed chunk is read in pieces")
    return SpanLines(work.sources[chunk.task].files[span.file].path, span.start, span.stop, span.content)


def digest_chunk(work: Work, chunk: Chunk) -> list[str]:
    """The digest of the lines of each span of a chunk, as they are now."""
    digests = []
    for span in chunk.spans:
        lines = span_lines(work, chunk, span)
        for _ in lines:
            pass
        digests.append(lines.digest)
    return digests


def place_of(work: Work, chunk: Chunk, span_number: int, line: int) -> str:
    """File and line of a record, for an error; may read what is before the span once more."""
    span = chunk.spans[span_number]
    path = work.sources[chunk.task].files[span.file].path
    before = lines_before(path, span.start) if span.lines_before is None else span.lines_before
    return f"{path} line {line + before}"
