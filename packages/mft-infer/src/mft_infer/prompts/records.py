"""The prompts JSONL: one problem a line, judged as it is read."""

import hashlib
import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import orjson

from mft_infer.errors import InferError

# Some templates make a special token of it.
ROLE = re.compile(r"[A-Za-z_-]+")
ROLES = {"human": "user", "bot": "assistant"}
# What of a record decides its answer.
ASKING_KEYS = ("messages", "chat_rounds", "prompt")
PROMPT_KEYS = (*ASKING_KEYS, "tools", "special_tokens")


@dataclass(frozen=True, slots=True)
class Prompt:
    """One problem: either `messages` for the chat template or a raw `text`, or what is wrong with it.

    `sha256` is of all that the record asks, hexadecimal; `error` is None for a sound record. `tools` are JSON schemas
    for the template. With `special_tokens` the texts of special tokens in a raw prompt are special tokens.
    """

    problem_id: str
    messages: list[dict[str, Any]] | None
    text: str | None
    sha256: str
    error: str | None = None
    tools: list[dict[str, Any]] | None = None
    special_tokens: bool = False


def read_prompts(lines: Iterable[bytes], name: str) -> list[Prompt]:
    """The prompts in `lines`; raises InferError for a line that has no problem_id of its own.

    A line with a problem_id that cannot be a prompt becomes one with an error, which costs the others nothing.
    """
    prompts: list[Prompt] = []
    first_lines: dict[str, int] = {}
    for number, line in enumerate(lines, start=1):
        where = f"{name} line {number}"
        prompt = _parse(line, where)
        if prompt.problem_id in first_lines:
            earlier = first_lines[prompt.problem_id]
            raise InferError(f'problem_id "{prompt.problem_id}" is in line {earlier} already', where=where)
        first_lines[prompt.problem_id] = number
        prompts.append(prompt)
    if not prompts:
        raise InferError("there are no prompts", where=name)
    return prompts


def _parse(line: bytes, where: str) -> Prompt:
    try:
        entry = orjson.loads(line)
    except orjson.JSONDecodeError as error:
        raise InferError(f"invalid JSON ({error.msg})", where=where) from error
    if not isinstance(entry, dict):
        raise InferError("a prompt is not a JSON object", where=where)
    problem_id = entry.get("problem_id")
    if not isinstance(problem_id, str) or not problem_id:
        raise InferError("problem_id is missing or not a text", where=where)
    asked = {key: entry[key] for key in PROMPT_KEYS if entry.get(key) is not None}
    sha256 = hashlib.sha256(orjson.dumps(asked, option=orjson.OPT_SORT_KEYS)).hexdigest()
    fault = _fault(asked)
    if fault:
        return Prompt(problem_id, None, None, sha256, error=fault)
    rounds = asked.get("messages", asked.get("chat_rounds"))
    messages = None if rounds is None else [_message(entry) for entry in rounds]
    return Prompt(
        problem_id,
        messages,
        asked.get("prompt"),
        sha256,
        tools=asked.get("tools"),
        special_tokens=asked.get("special_tokens", False),
    )


def _fault(asked: dict[str, Any]) -> str | None:
    """What is wrong with the question of a record, None if nothing is."""
    keys = [key for key in ASKING_KEYS if key in asked]
    if len(keys) != 1:
        return "a prompt needs one of messages, chat_rounds and prompt"
    [key], value = keys, asked[keys[0]]
    if key == "prompt":
        return _raw_fault(asked)
    tools = asked.get("tools", [])
    if not isinstance(tools, list) or not all(isinstance(tool, dict) for tool in tools):
        return "tools is not a list of objects"
    if "special_tokens" in asked:
        return "special_tokens goes with prompt only"
    if not isinstance(value, list) or not value:
        return f"{key} is not a list of messages"
    for index, message in enumerate(value):
        if not isinstance(message, dict) or not isinstance(message.get("role"), str):
            return f"message {index} needs a role"
        # A message that calls tools may say nothing beside.
        says_nothing = message.get("content") is None and message.get("tool_calls")
        if not says_nothing and not isinstance(message.get("content"), str):
            return f"message {index} needs a content, which is a text"
        if not ROLE.fullmatch(message["role"]):
            return f"the role of message {index} is no word"
    return None


def _raw_fault(asked: dict[str, Any]) -> str | None:
    if not isinstance(asked["prompt"], str):
        return "prompt is not a text"
    if not isinstance(asked.get("special_tokens", False), bool):
        return "special_tokens is not true or false"
    return "tools goes with messages only" if "tools" in asked else None


def _message(entry: dict[str, Any]) -> dict[str, Any]:
    """A message under the role that chat templates know it by."""
    return {**entry, "role": ROLES.get(entry["role"], entry["role"])}


def with_system(messages: list[dict[str, Any]], system: str | None) -> list[dict[str, Any]]:
    """The messages after a system message, if there is one to add and they have none."""
    if system is None or messages[0]["role"] == "system":
        return messages
    return [{"role": "system", "content": system}, *messages]
