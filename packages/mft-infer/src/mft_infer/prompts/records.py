"""The prompts JSONL: one problem a line, judged as it is read."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import orjson

from mft_infer.errors import InferError


@dataclass(frozen=True, slots=True)
class Prompt:
    """One problem: either `messages` for the chat template or a raw `text`."""

    problem_id: str
    messages: list[dict[str, str]] | None
    text: str | None


def read_prompts(lines: Iterable[bytes], name: str) -> list[Prompt]:
    """The prompts in `lines`; an error names the source `name` and the line."""
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
    messages, text = entry.get("messages"), entry.get("prompt")
    if (messages is None) == (text is None):
        raise InferError("a prompt needs either messages or prompt", where=where)
    if text is not None and not isinstance(text, str):
        raise InferError("prompt is not a text", where=where)
    if messages is not None:
        _check_messages(messages, where)
    return Prompt(problem_id, messages, text)


def _check_messages(messages: Any, where: str) -> None:
    if not isinstance(messages, list) or not messages:
        raise InferError("messages is not a list of messages", where=where)
    for index, message in enumerate(messages):
        if not isinstance(message, dict) or not all(isinstance(message.get(key), str) for key in ("role", "content")):
            raise InferError(f"message {index} needs a role and a content, both texts", where=where)
