"""Conversations from lists of rounds, as chat_rounds, OpenAI's messages and ShareGPT's conversations have them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from mft_data.errors import RecordError
from mft_data.reading.conversation import ROLES, Conversation, Turn, check_order, role_fix
from mft_data.reading.extras import extra_of, tools_turn
from mft_data.reading.fields import found_fields, json_type, optional_field, quoted, string_field

ROUNDS_FORMATS = ("chat_rounds", "messages", "conversations")
# The names of a round's role and content; the second are ShareGPT's.
ROUND_FIELDS = (("role", "content"), ("from", "value"))


def parse_rounds(record: dict[str, Any], field: str) -> Conversation:
    """The conversation of a list of rounds: an optional system turn, then human and bot in alternation.

    A `system` field with text is the system turn where the list has none.
    """
    if field not in record:
        raise RecordError(f'field "{field}" is missing', fix=found_fields(record))
    rounds = record[field]
    if not isinstance(rounds, list):
        raise RecordError(f'field "{field}" is {json_type(rounds)}, not a list')
    if not rounds:
        raise RecordError(f'field "{field}" is empty')
    conversation = tuple(parse_turn(entry, number) for number, entry in enumerate(rounds, start=1))
    check_order(conversation)
    if system := optional_field(record, "system"):
        if conversation[0].role == "system":
            raise RecordError('the record has a system turn, and a field "system"', fix="leave one out")
        conversation = (Turn("system", system, is_supervised=False), *conversation)
    return (*tools_turn(record), *conversation)


def parse_turn(entry: Any, number: int) -> Turn:
    """The turn of one round; `number` counts from 1 and is only for messages."""
    where = f"round {number}"
    if not isinstance(entry, dict):
        raise RecordError(f"{where} is {json_type(entry)}, not an object")
    role_field, content_field = ROUND_FIELDS["from" in entry and "role" not in entry]
    given_role = string_field(entry, role_field, where)
    role = ROLES.get(given_role)
    if role is None:
        raise RecordError(f"unknown role {quoted(given_role)} in {where}", fix=role_fix(given_role))
    extra = extra_of(entry, role, where)
    # What calls a tool says nothing beside it, mostly.
    is_silent = '"tool_calls"' in extra and entry.get(content_field) is None
    content = "" if is_silent else content_of(entry, content_field, where)
    is_supervised = role == "bot"
    if "train" in entry or "weight" in entry:
        is_supervised = is_trained_on(entry, role, given_role, where)
    if role == "bot" and not content.strip() and '"tool_calls"' not in extra:
        raise RecordError(f"{where} is a bot turn without content")
    return Turn(role, content, is_supervised, extra)


def role_of(entry: dict[str, Any]) -> str:
    """The role of a round that `parse_turn` takes."""
    return ROLES[entry["from" if "from" in entry and "role" not in entry else "role"]]


def is_trained_on(entry: dict[str, Any], role: str, given_role: str, where: str) -> bool:
    """What a round's `train` and `weight` say; raises RecordError if it is no bot turn, or they are no flags."""
    flags = {field: parse(entry[field], where) for field, parse in FLAGS.items() if field in entry}
    if role != "bot":
        field = next(iter(flags))
        raise RecordError(f'{where} is a {given_role} turn with "{field}"', fix="only bot turns are trained on")
    return all(flags.values())


def content_of(entry: dict[str, Any], field: str, where: str) -> str:
    """The text of a round: a string, or a list of parts that are all text; raises RecordError."""
    parts = entry.get(field)
    if not isinstance(parts, list):
        return string_field(entry, field, where)
    texts = []
    for part in parts:
        if not isinstance(part, dict) or part.get("type") != "text":
            kind = quoted(str(part.get("type"))) if isinstance(part, dict) else json_type(part)
            raise RecordError(f'field "{field}" of {where} has a part that is no text ({kind})')
        texts.append(string_field(part, "text", f"a part of {where}"))
    return "".join(texts)


def train_flag(value: Any, where: str) -> bool:
    """The value of `train`; raises RecordError."""
    if not isinstance(value, bool):
        raise RecordError(f'"train" of {where} is {json_type(value)}, not true or false')
    return value


def message_weight(value: Any, where: str) -> bool:
    """Whether a message of this `weight` is trained on, as in OpenAI's files; raises RecordError."""
    if isinstance(value, bool) or value not in (0, 1):
        raise RecordError(f'"weight" of {where} is neither 0 nor 1', fix="weigh whole records")
    return bool(value)


# What a bot turn can say of being trained on.
FLAGS: dict[str, Callable[[Any, str], bool]] = {"train": train_flag, "weight": message_weight}
