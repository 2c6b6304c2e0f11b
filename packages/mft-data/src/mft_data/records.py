"""The records of a file: conversations for those accepted, and a tally of those refused."""

from collections.abc import Iterator
from dataclasses import dataclass, field

import orjson

from mft_data.conversation import Conversation, detect_format, parse_conversation
from mft_data.errors import DataError, RecordError
from mft_data.sources import SourceFile, read_lines


@dataclass(frozen=True, slots=True)
class MaxRejects:
    """How many records may be refused: a count, or a percentage of all records read."""

    count: int | None = 0
    percent: float | None = None


@dataclass(frozen=True, slots=True)
class Reject:
    """A refused record; `file` is its name inside the source, `line` counts from 1."""

    task: str
    file: str
    line: int
    reason: str


@dataclass(slots=True)
class Rejects:
    """The records refused so far in a build; raises DataError when they are too many."""

    allowed: MaxRejects
    entries: list[Reject] = field(default_factory=list)
    first: str = ""

    def add(self, reject: Reject, file: SourceFile, fix: str | None) -> None:
        """Counts one refused record in; raises DataError if it is one more than the count allowed."""
        where = f"{file.path} line {reject.line}"
        if self.allowed.count == 0:
            raise DataError(reject.reason, where=where, fix=fix)
        self.entries.append(reject)
        self.first = self.first or f"{reject.reason}, in {where}"
        if self.allowed.count is not None and len(self.entries) > self.allowed.count:
            raise DataError(f"more than {self.allowed.count} records were refused, the first: {self.first}")

    def check_percent(self, num_records: int) -> None:
        """Raises DataError if the refused ones are more than the percentage allowed of all records."""
        percent = self.allowed.percent
        if percent is not None and len(self.entries) * 100 > percent * num_records:
            refused = f"{len(self.entries)} of {num_records} records were refused"
            raise DataError(f"{refused}, more than {percent:g} %, the first: {self.first}")


def read_conversations(
    task: str, file: SourceFile, record_format: str | None, rejects: Rejects
) -> Iterator[tuple[int, Conversation | None]]:
    """Line number and conversation of each record, None for a refused one.

    Without a `record_format` the first record that has the field of a known one decides for the whole file.
    """
    for line_number, line in read_lines(file.path):
        try:
            record = parse_json(line)
            record_format = record_format or detect_format(record)
            conversation = parse_conversation(record, record_format)
        except RecordError as error:
            rejects.add(Reject(task, file.name, line_number, error.reason), file, error.fix)
            conversation = None
        yield line_number, conversation


def parse_json(line: bytes) -> object:
    """The decoded JSON of a line; raises RecordError."""
    try:
        return orjson.loads(line)
    except orjson.JSONDecodeError as error:
        raise RecordError(f"the line is not JSON ({error.msg}, at character {error.pos + 1})") from error
