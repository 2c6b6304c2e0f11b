"""The prompts JSONL: one problem a line, judged as it is read."""

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import orjson

from mft_infer.errors import InferError

ROLES = {"human": "user", "bot": "assistant"}
# What of a record decides its answer.
PROMPT_KEYS = ("messages", "chat_rounds", "prompt")


@dataclass(frozen=True, slots=True)
class Prompt:
    """One problem: either `messages` for the chat template or a raw `text`, or what is wrong with it.

    `sha256` is of all that the record asks, hexadecimal; `error` is None for a sound record.
    """

    problem_id: str
    messages: list[dict[str, Any]] | None
    text: str | None
    sha256: str
    error: str | None = None


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
    return Prompt(problem_id, messages, asked.get("prompt"), sha256)


def _fault(asked: dict[str, Any]) -> str | None:
    """What is wrong with the question of a record, None if nothing is."""
    if len(asked) != 1:
        return "a prompt needs one of messages, chat_rounds and prompt"
    [(key, value)] = asked.items()
    if key == "prompt":
        return None if isinstance(value, str) else "prompt is not a text"
    if not isinstance(value, list) or not value:
        return f"{key} is not a list of messages"
    for index, message in enumerate(value):
        if not isinstance(message, dict) or not all(isinstance(message.get(name), str) for name in ("role", "content")):
            return f"message {index} needs a role and a content, both texts"
    return None


def _message(entry: dict[str, Any]) -> dict[str, Any]:
    """A message under the role that chat templates know it by."""
    return {**entry, "role": ROLES.get(entry["role"], entry["role"])}
