"""Conversations on disk: chat_rounds JSONL, as mft-data reads it for training."""

from pathlib import Path
from typing import Any

import orjson

from mft_infer.errors import InferError

SAVED_ROLES = {"user": "human", "assistant": "bot"}
READ_ROLES = {"human": "user", "bot": "assistant"}


def save_conversation(path: Path, messages: list[dict[str, str]]) -> None:
    """Append the conversation as one line."""
    rounds = [{"role": SAVED_ROLES.get(item["role"], item["role"]), "content": item["content"]} for item in messages]
    with path.open("ab") as file:
        file.write(orjson.dumps({"chat_rounds": rounds}) + b"\n")


def load_conversation(path: Path) -> list[dict[str, str]]:
    """The messages of the last line; raises InferError unless they are questions and answers in turn."""
    lines = path.read_bytes().splitlines()
    if not lines:
        raise InferError("the file has no conversation", where=str(path))
    where = f"{path} line {len(lines)}"
    try:
        record = orjson.loads(lines[-1])
    except orjson.JSONDecodeError as error:
        raise InferError(f"invalid JSON ({error.msg})", where=where) from error
    rounds = record.get("chat_rounds", record.get("messages")) if isinstance(record, dict) else None
    messages = [_message(entry, where) for entry in rounds] if isinstance(rounds, list) else []
    roles = [message["role"] for message in messages]
    turns = roles[1:] if roles[:1] == ["system"] else roles
    if not turns or turns != ["user", "assistant"] * (len(turns) // 2):
        raise InferError("the line is no conversation of questions and answers in turn", where=where)
    return messages


def _message(entry: Any, where: str) -> dict[str, str]:
    if not isinstance(entry, dict) or not all(isinstance(entry.get(key), str) for key in ("role", "content")):
        raise InferError("a round needs a role and a content, both texts", where=where)
    return {"role": READ_ROLES.get(entry["role"], entry["role"]), "content": entry["content"]}
