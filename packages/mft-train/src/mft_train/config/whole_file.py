"""Files beside those of the user, which appear whole or not at all."""

from __future__ import annotations

import os
import secrets
from typing import TYPE_CHECKING

from mft_train.errors import TrainError

if TYPE_CHECKING:
    from pathlib import Path


def write_whole(content: bytes, path: Path) -> None:
    """Writes a file, in place of one that is there, and touches no other; raises TrainError if it has no folder."""
    if not path.parent.is_dir():
        raise TrainError(f'there is no folder "{path.parent}" for "{path.name}"', fix="make it first")
    staging = path.with_name(f".{path.name}.partial-{secrets.token_hex(8)}")  # a name that nobody else has
    file = staging.open("xb")
    try:
        with file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        staging.replace(path)
    finally:
        staging.unlink(missing_ok=True)
