"""JSON objects on disk: read with a clear error, written the same way every time."""

from pathlib import Path
from typing import Any

import orjson

from mft_merge.errors import MergeError


def read_json(path: Path) -> dict[str, Any]:
    """The JSON object in the file at `path`."""
    try:
        value = orjson.loads(path.read_bytes())
    except orjson.JSONDecodeError as error:
        raise MergeError(f"invalid JSON ({error})", where=str(path)) from error
    if not isinstance(value, dict):
        raise MergeError("not a JSON object", where=str(path))
    return value


def check_kinds(document: dict[str, Any], kinds: dict[str, tuple[type, ...]], path: Path) -> None:
    """Raise for a key of the document at `path` whose value is of none of its kinds; it may be missing or null."""
    for key, allowed in kinds.items():
        value = document.get(key)
        if value is not None and not isinstance(value, allowed):
            raise MergeError(f'"{key}" is {value!r:.60}, which it may not be', where=str(path))


def write_json(path: Path, value: dict[str, Any]) -> None:
    """Write a JSON object, indented and in the order of its keys."""
    path.write_bytes(orjson.dumps(value, option=orjson.OPT_INDENT_2) + b"\n")
