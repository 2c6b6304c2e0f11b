"""What records have for chat templates beside roles and contents: tools, tool calls, their results, and reasoning."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import orjson

from mft_data.errors import RecordError
from mft_data.reading.conversation import RESERVED_CHARACTER, TOOLS, Turn
from mft_data.reading.fields import json_type, string_field

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator

    from mft_data.reading.conversation import Conversation

# The fields of a round, by who may have them.
FIELDS_BY_ROLE = {"bot": ("tool_calls", "reasoning_content"), "tool": ("tool_call_id", "name")}
# All of which a template may or may not make something.
EXTRA_FIELDS = (TOOLS, *(field for fields in FIELDS_BY_ROLE.values() for field in fields))


def extra_of(entry: dict[str, Any], role: str, where: str) -> str:
    """The `extra` of a round's turn; raises RecordError."""
    found = {}
    for field in FIELDS_BY_ROLE.get(role, ()):
        if entry.get(field) in (None, "", []):
            continue
        found[field] = tool_calls(entry[field], where) if field == "tool_calls" else string_field(entry, field, where)
    return encoded(found, where) if found else ""


def tool_calls(calls: Any, where: str) -> list[dict[str, Any]]:
    """The tool calls of a round, their arguments as objects, as chat templates expect them; raises RecordError."""
    if not isinstance(calls, list) or not all(isinstance(call, dict) for call in calls):
        raise RecordError(f'field "tool_calls" of {where} is not a list of objects')
    return [with_decoded_arguments(call, where) for call in calls]


def with_decoded_arguments(call: dict[str, Any], where: str) -> dict[str, Any]:
    """A tool call whose arguments are an object where they were one in a string, as OpenAI has them."""
    function = call.get("function", call)
    if not isinstance(function, dict) or not isinstance(function.get("name"), str):
        raise RecordError(f"a tool call of {where} names no function")
    arguments = function.get("arguments")
    if not isinstance(arguments, str):
        return call
    try:
        decoded = orjson.loads(arguments or "{}")
    except orjson.JSONDecodeError as error:
        raise RecordError(f"the arguments of a tool call of {where} are not JSON ({error.msg})") from error
    if not isinstance(decoded, dict):
        raise RecordError(f"the arguments of a tool call of {where} are {json_type(decoded)}, not an object")
    function = {**function, "arguments": decoded}
    return {**call, "function": function} if "function" in call else function


def tools_turn(record: dict[str, Any]) -> tuple[Turn, ...]:
    """The turn of a record's tools, whatever they are; none without any."""
    tools = record.get(TOOLS)
    return (Turn(TOOLS, encoded(tools, "the record"), is_supervised=False),) if tools else ()


def checked_tools(turn: Turn) -> Turn:
    """The turn of tools, which are a list of objects or one in a string; raises RecordError."""
    tools = orjson.loads(turn.content)
    if isinstance(tools, str):
        try:
            tools = orjson.loads(tools)
        except orjson.JSONDecodeError as error:
            raise RecordError(f'field "{TOOLS}" is a string that is not JSON ({error.msg})') from error
    if not isinstance(tools, list) or not all(isinstance(tool, dict) for tool in tools):
        raise RecordError(f'field "{TOOLS}" is not a list of objects')
    return Turn(TOOLS, encoded(tools, "the record"), is_supervised=False)


def encoded(value: Any, where: str) -> str:
    """A value as JSON; raises RecordError if it holds the reserved character."""
    text = orjson.dumps(value).decode()
    if RESERVED_CHARACTER in text:
        raise RecordError(f"a tool or its use in {where} holds the noncharacter U+FDD0, which is reserved")
    return text


def kept_extras(conversation: Conversation, taken: Collection[str]) -> Conversation:
    """The conversation with only those extras that its template makes something of.

    Raises RecordError if a bot turn without content is left.
    """
    if not any(turn.extra or turn.role == TOOLS for turn in conversation):
        return conversation
    return tuple(remaining_turns(conversation, taken))


def remaining_turns(conversation: Conversation, taken: Collection[str]) -> Iterator[Turn]:
    """The turns of a conversation with only those extras; raises RecordError."""
    for turn in conversation:
        if turn.role == TOOLS:
            if TOOLS in taken:
                yield checked_tools(turn)
            continue
        kept = {field: value for field, value in orjson.loads(turn.extra or "{}").items() if field in taken}
        if turn.role == "bot" and not turn.content.strip() and "tool_calls" not in kept:
            raise RecordError(
                "a bot turn has no content, and the template makes nothing of its tool calls",
                fix="choose a chat template that does, such as --template tokenizer",
            )
        yield Turn(turn.role, turn.content, turn.is_supervised, orjson.dumps(kept).decode() if kept else "")
