"""The records of a file: the shape that its first one has, and how many may be refused in a build."""

import json
import re
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import orjson

from mft_data.errors import DataError, RecordError, plural
from mft_data.reading.conversation import Conversation, with_last_answer
from mft_data.reading.extras import kept_extras
from mft_data.reading.fields import quoted
from mft_data.reading.lines import read_lines
from mft_data.reading.preferences import num_shared_turns
from mft_data.reading.shapes import detect_format, parse_conversations, unused_fields
from mft_data.reading.source_settings import SourceSettings

SAMPLE_LINES = 100
CONTAINERS = (dict, list)
DEFAULT_SETTINGS = SourceSettings()
# Of a record: what float32 holds with room for sums.
LEAST_WEIGHT, MOST_WEIGHT = 1e-6, 1e6
SPACED_COLON = re.compile(rb'"\s+:')


@dataclass(frozen=True, slots=True)
class MaxRejects:
    """How many records may be refused: a count, or a percentage of all records read."""

    count: int | None = 0
    percent: float | None = None


class Reject(NamedTuple):
    """A refused record; `file` is its name inside the source, `line` counts from 1."""

    task: str
    file: str
    line: int
    reason: str


@dataclass(slots=True)
class RejectLimit:
    """The records refused so far in a build; raises DataError when they are too many.

    `num_records` is how many there are at most in all files, None if nobody knows yet.
    """

    allowed: MaxRejects
    num_records: int | None = None
    num_refused: int = 0
    first: str = ""

    def add(self, num_refused: int, first: Callable[[], str]) -> None:
        """Counts refused records in, of which `first` tells the first one in words; raises DataError."""
        if num_refused and not self.num_refused:
            self.first = first()
        self.num_refused += num_refused
        if self.allowed.count is not None and self.num_refused > self.allowed.count:
            most = f"{self.allowed.count} {plural(self.allowed.count, 'record')}"
            raise DataError(
                f"more than {most} {plural(self.allowed.count, 'was', 'were')} refused, the first: {self.first}"
            )
        if self.num_records is not None:
            self.check_percent(self.num_records, "at most ")

    def check_percent(self, num_records: int, at_most: str = "") -> None:
        """Raises DataError if the refused ones are more than the percentage allowed of all records."""
        percent = self.allowed.percent
        if percent is not None and self.num_refused * 100 > percent * num_records:
            refused = f"{self.num_refused} of {at_most}{num_records} {plural(num_records, 'record')}"
            were = plural(self.num_refused, "was", "were")
            raise DataError(f"{refused} {were} refused, more than {percent:g} %, the first: {self.first}")


def file_format(path: Path, fields: Mapping[str, str]) -> str | None:
    """The shape of the first record that has a clear one, which decides for its whole file; None if none has.

    Looks at so many lines only: a file that begins with a hundred strange records is strange.
    """
    for _, line in islice(read_lines(path), SAMPLE_LINES):
        try:
            return detect_format(renamed(parse_json(line), fields), fields.values())
        except RecordError:
            continue
    return None


class ParsedRecord(NamedTuple):
    """What a line says, how much it weighs in the loss, the names of fields that do not matter to either, its group.

    It says one conversation, or a chosen and a rejected one that begin alike.
    """

    conversations: tuple[Conversation, ...]
    weight: float
    unused_fields: list[str]
    group: Any  # the value of the field that tells on which side it goes

    @property
    def conversation(self) -> Conversation:
        """All that is said, each turn once: of a pair the prompt, the chosen and the rejected turns."""
        if len(self.conversations) == 1:
            return self.conversations[0]
        chosen, rejected = self.conversations
        return (*chosen, *rejected[num_shared_turns(chosen, rejected) :])

    @property
    def prompt(self) -> Conversation:
        """What comes before the last answer, or before both of a pair; the whole of what has no turn before it."""
        first, *others = self.conversations
        return first[: num_shared_turns(first, others[0])] if others else first[:-1] or first


def parse_line(
    line: bytes,
    record_format: str | None,
    settings: SourceSettings = DEFAULT_SETTINGS,
    taken_extras: Collection[str] = (),
) -> ParsedRecord:
    """The conversation on a line of a file of this shape, by the settings of its source; raises RecordError.

    `taken_extras` are the EXTRA_FIELDS that the template makes something of.
    """
    given = record = parse_json(line)
    if settings.fields:
        record = renamed(record, settings.fields)
    record_format = record_format or detect_format(record, settings.fields.values())
    conversations = parse_conversations(record, record_format)
    conversations = tuple(kept_extras(conversation, taken_extras) for conversation in conversations)
    if settings.train_on == "last":
        conversations = tuple(map(with_last_answer, conversations))
    unused = list(unused_fields(record, record_format, taken_extras))
    group = None
    if (group_field := settings.group_field) is not None:
        group = given.get(group_field)
        if group is None:
            raise RecordError(f"field {quoted(group_field)}, the validation group, is missing")
        unused = [name for name in unused if name != group_field]
    return ParsedRecord(conversations, record_weight(record), unused, group)


def renamed(record: Any, fields: Mapping[str, str]) -> Any:
    """The record with fields under the names that they are read as; raises RecordError.

    What had such a name keeps its value under it in brackets, and so is not used.
    """
    if not fields or not isinstance(record, dict):
        return record
    targets = {target for field, target in fields.items() if field in record}
    shadowed = {name: f"({name})" for name in record if name in targets}
    return {fields.get(name, shadowed.get(name, name)): value for name, value in record.items()}


def record_weight(record: dict[str, Any]) -> float:
    """The `weight` of a record, 1 without one; raises RecordError unless it is a positive number."""
    weight = record.get("weight")
    return 1.0 if weight is None else checked_weight(weight)


def checked_weight(weight: Any) -> float:
    """The weight of a record in the loss; raises RecordError unless it is a number that a weight can be."""
    if isinstance(weight, bool) or not isinstance(weight, int | float) or not LEAST_WEIGHT <= weight <= MOST_WEIGHT:
        raise RecordError(
            f'field "weight" is no number from {LEAST_WEIGHT:g} to {MOST_WEIGHT:g}', fix="leave out what has no weight"
        )
    return float(weight)


def parse_json(line: bytes) -> Any:
    """The decoded JSON of a line; raises RecordError, for an object with a key twice, too."""
    try:
        value = orjson.loads(line)
    except orjson.JSONDecodeError as error:
        try:
            line.decode()
        except UnicodeDecodeError as invalid:
            raise RecordError(f"the line is not UTF-8 ({invalid.reason}, at byte {invalid.start + 1})") from error
        raise RecordError(f"the line is not JSON ({error.msg}, at character {error.pos + 1})") from error
    num = num_members(value)
    if line.count(b'":') != num or has_spaced_colon(line):
        check_repeats(line, num)
    return value


def check_repeats(line: bytes, num: int) -> None:
    """Raises RecordError if an object in a valid JSON text has a key twice; `num` counts members without repeats."""
    if num_colons(line) != num:
        try:
            json.loads(line, object_pairs_hook=without_repeats)
        except RecursionError as error:
            raise RecordError("the line is nested too deeply") from error


def num_colons(line: bytes) -> int:
    """At least how many members the objects of a valid JSON text have, repeated keys and all; -1 if hard to tell.

    A colon after a quote that no backslash makes part of a string ends a key, or begins a string.
    """
    if b'\\\\":' in line or has_spaced_colon(line):
        return -1
    return line.count(b'":') - line.count(b'\\":')


def has_spaced_colon(line: bytes) -> bool:
    """Whether white space stands between a key and its colon, or seems to."""
    return (b" :" in line and bool(SPACED_COLON.search(line))) or b"\t" in line or b"\r" in line[:-2]


def num_members(value: Any) -> int:
    """How many members all objects in a decoded JSON value have."""
    num, pending = 0, [value]
    while pending:
        inner = pending.pop()
        if type(inner) is dict:
            num += len(inner)
            inner = inner.values()
        elif type(inner) is not list:
            continue
        pending += [entry for entry in inner if type(entry) in CONTAINERS]
    return num


def without_repeats(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """The object of these members; raises RecordError if a key comes twice."""
    found = dict(pairs)
    if len(found) < len(pairs):
        repeated = next(key for number, (key, _) in enumerate(pairs) if key in dict(pairs[:number]))
        raise RecordError(f"the key {quoted(repeated)} comes twice in an object", fix="leave one of them out")
    return found
