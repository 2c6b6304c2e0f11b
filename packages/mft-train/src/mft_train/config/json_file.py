"""Reading a JSON file that somebody else wrote."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import orjson

from mft_train.errors import TrainError

if TYPE_CHECKING:
    from pathlib import Path


def read_json(path: Path, what: str) -> dict[str, Any]:
    """The object in a JSON file, which errors call `what`; raises TrainError."""
    try:
        values = orjson.loads(path.read_bytes())
    except OSError as error:
        raise TrainError(f"cannot read {what}: {error.strerror}", where=str(path)) from error
    except orjson.JSONDecodeError as error:
        raise TrainError(f"not valid JSON: {error.msg}", where=f"{path} line {error.lineno}") from error
    if not isinstance(values, dict):
        raise TrainError(f"{what} is not a JSON object", where=str(path))
    return values
