"""The conversation, and the record shapes that one can be read from."""

from collections.abc import Callable
from dataclasses import dataclass
from difflib import get_close_matches
from functools import lru_cache, partial
from itertools import islice, product
from typing import Any

from mft_data.errors import RecordError

# The roles a record may use, and the three that conversations are made of.
ROLES = {"system": "system", "human": "human", "user": "human", "bot": "bot", "assistant": "bot"}

# Opens the private names of special tokens (see special_tokens.py); a Unicode noncharacter, never valid in interchange.
RESERVED_CHARACTER = "\ufdd0"


@dataclass(frozen=True, slots=True)
class Turn:
    """One round; `role` is system, human, bot, or text for a document without roles."""

    role: str
    content: str
    is_supervised: bool


Conversation = tuple[Turn, ...]

# A pair record has one field of each.
QUESTION_FIELDS = ("prompt", "instruction", "input", "question", "query")
ANSWER_FIELDS = ("response", "output", "answer", "completion")


def parse_conversation(record: Any, record_format: str) -> Conversation:
    """The conversation of a decoded JSON record in one of RECORD_FORMATS; raises RecordError."""
    if not isinstance(record, dict):
        raise RecordError(f"the record is {json_type(record)}, not an object")
    return RECORD_FORMATS[record_format](record)


def detect_format(record: Any) -> str:
    """The only one of RECORD_FORMATS whose fields a decoded JSON record has; raises RecordError.

    Beside an `instruction`, `input` is part of the question and makes no pair of its own.
    """
    if not isinstance(record, dict):
        raise RecordError(f"the record is {json_type(record)}, not an object")
    fitting = [name for name in RECORD_FORMATS if all(field in record for field in name.split("/"))]
    if "instruction" in record:
        fitting = [name for name in fitting if not name.startswith("input/")]
    if not fitting:
        raise RecordError(
            f"no known shape fits: {found_fields(record)}",
            fix="name its fields as one of the shapes of --format does",
        )
    if len(fitting) > 1:
        shapes = ", ".join(fitting)
        raise RecordError(f"the record has the fields of several shapes ({shapes})", fix="choose one with --format")
    return fitting[0]


def parse_text(record: dict[str, Any]) -> Conversation:
    """The document of `{"text": "..."}`, supervised as a whole."""
    return (Turn("text", filled_field(record, "text"), is_supervised=True),)


def parse_pair(record: dict[str, Any], question_field: str, answer_field: str) -> Conversation:
    """The conversation of one question and its answer, after a `system` turn if that field has text.

    The `input` of an instruction follows it after a blank line. An instruction is never left out: a record with one
    is refused where its `input` was to be the whole question.
    """
    question = string_field(record, question_field)
    if question_field == "instruction":
        question = "\n\n".join(filter(None, (question, optional_field(record, "input"))))
    elif question_field == "input" and optional_field(record, "instruction"):
        raise RecordError(
            f'the record has an "instruction", which the shape input/{answer_field} would leave out',
            fix=f"choose instruction/{answer_field} with --format",
        )
    turns = (Turn("human", question, is_supervised=False), Turn("bot", filled_field(record, answer_field), True))
    system = optional_field(record, "system")
    return (Turn("system", system, is_supervised=False), *turns) if system else turns


def parse_rounds(record: dict[str, Any], field: str) -> Conversation:
    """The conversation of a list of rounds: an optional system turn, then human and bot in alternation."""
    if field not in record:
        raise RecordError(f'field "{field}" is missing', fix=found_fields(record))
    rounds = record[field]
    if not isinstance(rounds, list):
        raise RecordError(f'field "{field}" is {json_type(rounds)}, not a list')
    if not rounds:
        raise RecordError(f'field "{field}" is empty')
    conversation = tuple(parse_turn(entry, number) for number, entry in enumerate(rounds, start=1))
    check_order(conversation)
    return conversation


def parse_turn(entry: Any, number: int) -> Turn:
    """The turn of one round; `number` counts from 1 and is only for messages."""
    where = f"round {number}"
    if not isinstance(entry, dict):
        raise RecordError(f"{where} is {json_type(entry)}, not an object")
    given_role = string_field(entry, "role", where)
    content = string_field(entry, "content", where)
    role = ROLES.get(given_role)
    if role is None:
        raise RecordError(f"unknown role {quoted(given_role)} in {where}", fix=role_fix(given_role))
    is_supervised = role == "bot"
    if "train" in entry:
        if role != "bot":
            raise RecordError(f'{where} is a {given_role} turn with "train"', fix="only bot turns are trained on")
        is_supervised = entry["train"]
        if not isinstance(is_supervised, bool):
            raise RecordError(f'"train" of {where} is {json_type(is_supervised)}, not true or false')
    if role == "bot" and not content:
        raise RecordError(f"{where} is a bot turn without content")
    return Turn(role, content, is_supervised)


@lru_cache(maxsize=256)  # a file with a wrong role has it in every record
def role_fix(role: str) -> str:
    """What to write in place of an unknown role."""
    nearest = get_close_matches(role.lower(), ROLES, n=1)
    use = f'write "{nearest[0]}"' if nearest else "use another"
    return f"{use} (the roles are {', '.join(ROLES)})"


def check_order(conversation: Conversation) -> None:
    """Raises RecordError unless the turns alternate, end with a bot turn, and one of them is supervised."""
    if not any(turn.role == "bot" for turn in conversation):
        raise RecordError("the conversation has no bot turn")
    expected = "human"
    for number, turn in enumerate(conversation, start=1):
        if turn.role == "system":
            if number > 1:
                raise RecordError(f"round {number} is a system turn, which may only be the first")
            continue
        if turn.role != expected:
            raise RecordError(f"round {number} is a {turn.role} turn where a {expected} turn has to come")
        expected = "bot" if expected == "human" else "human"
    if expected == "bot":
        raise RecordError("the last round is a human turn without an answer")
    if not any(turn.is_supervised for turn in conversation):
        raise RecordError('every bot turn has "train": false, which leaves nothing to learn')


def string_field(entry: dict[str, Any], field: str, where: str = "the record") -> str:
    """The string under `field`; raises RecordError if it is missing, no string, or holds the reserved character."""
    text = entry.get(field)
    if isinstance(text, str) and RESERVED_CHARACTER not in text:
        return text
    name = f'field "{field}"' if where == "the record" else f'field "{field}" of {where}'
    if field not in entry:
        raise RecordError(f"{name} is missing", fix=found_fields(entry, where))
    if not isinstance(text, str):
        raise RecordError(f"{name} is {json_type(text)}, not a string")
    raise RecordError(f"{name} holds the noncharacter U+FDD0, which is reserved")


def filled_field(record: dict[str, Any], field: str) -> str:
    """The string under `field`; raises RecordError if there is none or it is empty."""
    text = string_field(record, field)
    if not text:
        raise RecordError(f'field "{field}" is empty')
    return text


def optional_field(record: dict[str, Any], field: str) -> str:
    """The string under `field`, empty where the field is missing or null; raises RecordError if it is anything else."""
    return "" if record.get(field) is None else string_field(record, field)


def found_fields(entry: dict[str, Any], where: str = "the record") -> str:
    """Which fields an object has, in words; at most eight of them."""
    names = [quoted(name) for name in islice(entry, 8)]
    more = f" and {len(entry) - len(names)} more" if len(entry) > len(names) else ""
    return f"{where} has {', '.join(names) or 'no fields'}{more}"


def quoted(text: str) -> str:
    """`text` on one line and in quotes, cut to 40 characters."""
    shown = text if len(text) <= 40 else f"{text[:40]}..."
    return f'"{shown}"' if shown.isprintable() else ascii(shown)


def json_type(value: Any) -> str:
    """The JSON type of a decoded value, with its article."""
    names = {type(None): "null", bool: "a boolean", str: "a string", list: "a list", dict: "an object"}
    return names.get(type(value), "a number")


# The shapes of a record, each named by the fields it needs.
RECORD_FORMATS: dict[str, Callable[[dict[str, Any]], Conversation]] = {
    "chat_rounds": partial(parse_rounds, field="chat_rounds"),
    "messages": partial(parse_rounds, field="messages"),
    "text": parse_text,
    **{
        f"{question}/{answer}": partial(parse_pair, question_field=question, answer_field=answer)
        for question, answer in product(QUESTION_FIELDS, ANSWER_FIELDS)
    },
}
