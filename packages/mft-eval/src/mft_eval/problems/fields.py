"""Fields of a problem's record, checked."""

from typing import Any

from mft_eval.errors import EvalError


def text(record: dict[str, Any], key: str, where: str, default: str | None = None) -> str:
    """The text under `key`; raises where it is missing without a default, or no text."""
    found = record.get(key, default)
    if not isinstance(found, str):
        raise EvalError(f'"{key}" is {"missing" if found is None else "not text"}', where=where)
    return found


def texts(record: dict[str, Any], key: str, where: str) -> tuple[str, ...]:
    """The list of texts under `key`, empty where it is missing."""
    found = record.get(key, [])
    if not isinstance(found, list) or not all(isinstance(item, str) for item in found):
        raise EvalError(f'"{key}" is not a list of texts', where=where)
    return tuple(found)


def task_id(record: dict[str, Any], where: str) -> str:
    """The `task_id`, text or an integer, as text."""
    found = record["task_id"]
    if isinstance(found, bool) or not isinstance(found, (str, int)):
        raise EvalError('"task_id" is neither text nor an integer', where=where)
    return str(found)


def user_message(content: str) -> tuple[dict[str, str], ...]:
    """A conversation of one message."""
    return ({"role": "user", "content": content},)
