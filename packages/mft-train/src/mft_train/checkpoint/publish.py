"""Directories that get their name when they are whole, and lose it before they are deleted."""

from __future__ import annotations

import ctypes
import os
import shutil
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

# Of Linux' renameat2: paths from the current folder, and names that change places.
AT_FDCWD, RENAME_EXCHANGE = -100, 2


def publish(staging: Path, target: Path) -> None:
    """Flushes all of `staging` to disk and gives it the name `target`, in place of an older one if there is one.

    Where the file system can exchange two names there is no moment without a whole `target`, else a short one.
    """
    for path in [staging, *staging.rglob("*")]:
        flush(path)
    old = None
    if target.exists():
        old = staging if exchange(staging, target) else set_aside(target)
    if old != staging:
        staging.replace(target)
    flush(target.parent)
    if old:
        shutil.rmtree(old)


def exchange(one: Path, other: Path) -> bool:
    """Swaps the names of two existing files or directories in one step; false where that cannot be done."""
    function = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None)
    if function is None:
        return False
    return function(AT_FDCWD, os.fsencode(one), AT_FDCWD, os.fsencode(other), RENAME_EXCHANGE) == 0


def discard(directory: Path) -> None:
    """Deletes a directory if it is there; a deletion that is cut short leaves nothing that looks whole."""
    if directory.exists():
        shutil.rmtree(set_aside(directory))


def set_aside(directory: Path) -> Path:
    """Gives a directory a name that says that it is being deleted; that name."""
    doomed = directory.with_name(f".{directory.name}.deleted")
    shutil.rmtree(doomed, ignore_errors=True)
    return directory.rename(doomed)


def flush(path: Path) -> None:
    """Waits until a file, or the names in a directory, are on disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
