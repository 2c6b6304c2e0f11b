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


def write_json(path: Path, value: dict[str, Any]) -> None:
    """Write a JSON object, indented and in the order of its keys."""
    path.write_bytes(orjson.dumps(value, option=orjson.OPT_INDENT_2) + b"\n")
