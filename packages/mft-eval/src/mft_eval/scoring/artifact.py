"""Files that appear whole or not at all."""

import contextlib
import os
import secrets
from pathlib import Path
from typing import Any

import orjson

from mft_eval.errors import EvalError


def check_output(out: str, *, overwrite: bool) -> None:
    """Raises, before any work, if a file could not be written to `out`."""
    path = Path(out)
    if out == "-":
        return
    if path.is_dir():
        raise EvalError(f"{out} is a directory", fix="name a file")
    if path.exists() and not overwrite:
        raise EvalError(f"{out} exists", fix="choose another name or use --overwrite")
    if not path.parent.is_dir():
        raise EvalError(f"the directory {path.parent} does not exist", fix="make it first")


def encode_json(value: dict[str, Any]) -> bytes:
    """The bytes of a JSON file."""
    return orjson.dumps(value, option=orjson.OPT_INDENT_2 | orjson.OPT_APPEND_NEWLINE)


def write_file(content: bytes, out: str) -> None:
    """Writes `content` to the file `out`, whole or not at all."""
    path = Path(out)
    partial = path.with_name(f".{path.name}.partial-{secrets.token_hex(8)}")  # a name that nobody else has
    try:
        with partial.open("xb") as file, contextlib.ExitStack() as stack:
            stack.callback(partial.unlink, missing_ok=True)
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
            partial.replace(path)
    except OSError as error:
        raise EvalError(f"cannot write the results: {error.strerror}", where=out) from error
