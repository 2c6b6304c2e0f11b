"""The shapes that a record can have, each named by the fields it needs, and what a record has beside them."""

from __future__ import annotations

from collections.abc import Callable, Collection
from functools import partial
from itertools import product
from typing import TYPE_CHECKING, Any

from mft_data.errors import RecordError
from mft_data.reading.conversation import TOOLS, Conversation, Turn
from mft_data.reading.extras import FIELDS_BY_ROLE
from mft_data.reading.fields import filled_field, found_fields, json_type
from mft_data.reading.pairs import ANSWER_FIELDS, QUESTION_FIELDS, SYSTEM_FIELDS, parse_pair
from mft_data.reading.preferences import PREFERENCE, SIDES, fields_beside, parse_preference, rounds_of
from mft_data.reading.rounds import ROUNDS_FORMATS, parse_rounds, role_of

if TYPE_CHECKING:
    from collections.abc import Iterator

# Say which record it is, or how much it weighs, whatever its shape.
COMMON_FIELDS = {"id", "data_name", "weight"}
# Says of one answer whether it is a good one, as KTO learns from.
LABEL = "label"
ROUND_FIELDS = {"role", "content", "from", "value", "train", "weight", "tool_call_id"}


def parse_text(record: dict[str, Any]) -> Conversation:
    """The document of `{"text": "..."}`, supervised as a whole."""
    return (Turn("text", filled_field(record, "text"), is_supervised=True),)


def alone(parse: Callable[[dict[str, Any]], Conversation]) -> Callable[[dict[str, Any]], tuple[Conversation, ...]]:
    """What gives the one conversation of a record in a tuple."""
    return lambda record: (parse(record),)


# What a record says: one conversation, or a chosen and a rejected one.
RECORD_FORMATS: dict[str, Callable[[dict[str, Any]], tuple[Conversation, ...]]] = {
    PREFERENCE: parse_preference,
    **{name: alone(partial(parse_rounds, field=name)) for name in ROUNDS_FORMATS},
    "text": alone(parse_text),
    **{
        f"{question}/{answer}": alone(partial(parse_pair, question_field=question, answer_field=answer))
        for question, answer in product(QUESTION_FIELDS, ANSWER_FIELDS)
    },
}


def parse_conversations(record: Any, record_format: str) -> tuple[Conversation, ...]:
    """The conversation of a decoded JSON record in one of RECORD_FORMATS, or the two of a pair; raises RecordError."""
    if not isinstance(record, dict):
        raise RecordError(f"the record is {json_type(record)}, not an object")
    if has_label(record, record_format) and not record[LABEL]:
        raise RecordError(
            f'field "{LABEL}" is false, which says that the answer is a bad one, not to be learned',
            fix=f"leave such records out, or read the field as another, --field {LABEL}=data_name",
        )
    return RECORD_FORMATS[record_format](record)


def has_label(record: dict[str, Any], record_format: str) -> bool:
    """Whether a record of one answer says if it is a good one; other values than true and false say something else."""
    return isinstance(record.get(LABEL), bool) and record_format not in ("text", PREFERENCE)


def detect_format(record: Any, named: Collection[str] = ()) -> str:
    """The only one of RECORD_FORMATS whose fields a decoded JSON record has; raises RecordError.

    Beside an `instruction`, `input` is part of the question and makes no pair of its own. What has `chosen` and
    `rejected` is a pair of these, whatever else it has. Shapes with more of the fields `named` by the user go before
    others.
    """
    if not isinstance(record, dict):
        raise RecordError(f"the record is {json_type(record)}, not an object")
    fitting = [name for name in RECORD_FORMATS if all(field in record for field in name.split("/"))]
    if "instruction" in record:
        fitting = [name for name in fitting if not name.startswith("input/")]
    if PREFERENCE in fitting:
        return PREFERENCE
    if named:
        most = max((num_named(name, named) for name in fitting), default=0)
        fitting = [name for name in fitting if num_named(name, named) == most]
    if not fitting:
        raise RecordError(
            f"no known shape fits: {found_fields(record)}",
            fix="name its fields as one of the shapes of --format does",
        )
    if len(fitting) > 1:
        shapes = ", ".join(fitting)
        raise RecordError(f"the record has the fields of several shapes ({shapes})", fix="choose one with --format")
    return fitting[0]


def num_named(record_format: str, named: Collection[str]) -> int:
    """How many of the fields that a shape needs are among those named."""
    return sum(field in named for field in record_format.split("/"))


def used_fields(record_format: str) -> set[str]:
    """The fields of a record that its conversation is made of."""
    names = set(record_format.split("/"))
    if record_format in ROUNDS_FORMATS:
        return names | {"system"}
    if record_format in ("text", PREFERENCE):
        return names
    return names | {*SYSTEM_FIELDS, "context", "history"} | ({"input"} if "instruction" in names else set())


USED_FIELDS = {name: used_fields(name) | COMMON_FIELDS for name in RECORD_FORMATS}
KNOWN_FIELDS = sorted({LABEL}.union(*USED_FIELDS.values()))


def unused_fields(record: dict[str, Any], record_format: str, taken: Collection[str] = ()) -> Iterator[str]:
    """The fields of a record, and of its rounds, that have something in them and are not used, each once.

    `taken` are the EXTRA_FIELDS that the template makes something of.
    """
    used = USED_FIELDS[record_format]
    lists = {record_format: record[record_format]} if record_format in ROUNDS_FORMATS else {}
    if record_format == PREFERENCE:
        used = used | fields_beside(record)
        lists = {side: rounds_of(record, side) for side in SIDES}
    yield from (
        name
        for name, value in record.items()
        if name not in used and has_something(value) and not (name == TOOLS and lists and TOOLS in taken)
        if not (name == LABEL and has_label(record, record_format))
    )
    for field, rounds in lists.items():
        names: dict[str, None] = {}
        for entry in rounds:
            if not entry.keys() <= ROUND_FIELDS:
                own = set(FIELDS_BY_ROLE.get(role_of(entry), ())).intersection(taken)
                names |= {
                    name: None
                    for name in entry
                    if name not in ROUND_FIELDS and name not in own and has_something(entry[name])
                }
        yield from (f"{field}.{name}" for name in names)


def has_something(value: Any) -> bool:
    """Whether a decoded JSON value is more than an empty one."""
    return value is not None and value not in ("", [], {})
