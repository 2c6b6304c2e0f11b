"""The conversation, and the record shapes that one can be read from."""

from collections.abc import Callable
from dataclasses import dataclass
from difflib import get_close_matches
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


def parse_conversation(record: Any, record_format: str) -> Conversation:
    """The conversation of a decoded JSON record in one of RECORD_FORMATS; raises RecordError."""
    if not isinstance(record, dict):
        raise RecordError(f"the record is {json_type(record)}, not an object")
    return RECORD_FORMATS[record_format](record)


def detect_format(record: Any) -> str:
    """The first of RECORD_FORMATS whose field the record has; raises RecordError."""
    if not isinstance(record, dict):
        raise RecordError(f"the record is {json_type(record)}, not an object")
    for name in RECORD_FORMATS:
        if name in record:
            return name
    raise RecordError(f"the record has none of the fields {', '.join(RECORD_FORMATS)}")


def parse_chat_rounds(record: dict[str, Any]) -> Conversation:
    """The conversation of `{"chat_rounds": [{"role", "content"}, ...]}`."""
    return parse_rounds(record, "chat_rounds")


def parse_messages(record: dict[str, Any]) -> Conversation:
    """The conversation of `{"messages": [{"role", "content"}, ...]}`."""
    return parse_rounds(record, "messages")


def parse_text(record: dict[str, Any]) -> Conversation:
    """The document of `{"text": "..."}`, supervised as a whole."""
    text = string_field(record, "text", "the record")
    if not text:
        raise RecordError('field "text" is empty')
    return (Turn("text", text, is_supervised=True),)


RECORD_FORMATS: dict[str, Callable[[dict[str, Any]], Conversation]] = {
    "chat_rounds": parse_chat_rounds,
    "messages": parse_messages,
    "text": parse_text,
}


def parse_rounds(record: dict[str, Any], field: str) -> Conversation:
    """The conversation of a list of rounds: an optional system turn, then human and bot in alternation."""
    if field not in record:
        raise RecordError(f'field "{field}" is missing')
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
        nearest = get_close_matches(given_role.lower(), ROLES, n=1)
        use = f'write "{nearest[0]}"' if nearest else "use another"
        raise RecordError(f'unknown role "{given_role}" in {where}', fix=f"{use} (the roles are {', '.join(ROLES)})")
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


def string_field(entry: dict[str, Any], field: str, where: str) -> str:
    """The string under `field`; raises RecordError if it is missing, no string, or holds the reserved character."""
    if field not in entry:
        raise RecordError(f'field "{field}" of {where} is missing')
    text = entry[field]
    if not isinstance(text, str):
        raise RecordError(f'field "{field}" of {where} is {json_type(text)}, not a string')
    if RESERVED_CHARACTER in text:
        raise RecordError(f'field "{field}" of {where} holds the noncharacter U+FDD0, which is reserved')
    return text


def json_type(value: Any) -> str:
    """The JSON type of a decoded value, with its article."""
    names = {type(None): "null", bool: "a boolean", str: "a string", list: "a list", dict: "an object"}
    return names.get(type(value), "a number")
