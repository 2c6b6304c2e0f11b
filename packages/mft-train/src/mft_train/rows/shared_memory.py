"""Streaming's shared memory: made by one run at a time, and what killed runs leave of it safely removed."""

from __future__ import annotations

import contextlib
import fcntl
import itertools
import os
import re
import signal
import stat
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

SEGMENT_DIR = Path("/dev/shm")  # noqa: S108 - where the C library keeps shared memory, not a temporary file
# The names in streaming's base/constant.py, each behind the number of the dataset that it belongs to.
SEGMENT_KINDS = ("locals", "barrier", "next_epoch", "cache_usage", "shard_states", "shard_access_times")
SEGMENT_KINDS += ("resume", "epoch_shape", "epoch_data")
LOCK_KINDS = ("barrier_filelock", "cache_filelock")
SEGMENT_NAME = re.compile(rf"(\d{{6,}})_(?:{'|'.join(SEGMENT_KINDS)})")
LOCK_NAME = re.compile(rf"(\d{{6,}})_(?:{'|'.join(LOCK_KINDS)})")
# Seconds to wait for other runs that make their segments.
PATIENCE = 60


@contextlib.contextmanager
def one_at_a_time() -> Iterator[None]:
    """Keeps other processes of this machine out of the same stretch of code, for up to PATIENCE seconds.

    Streaming looks for the first number without segments and then makes some: of two that look at once, one fails. The
    lock is on the folder of the segments, so that no file is left of it.
    """
    if not SEGMENT_DIR.is_dir():
        yield
        return
    descriptor = os.open(SEGMENT_DIR, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        deadline = time.monotonic() + PATIENCE
        while not is_locked(descriptor) and time.monotonic() < deadline:
            time.sleep(0.02)
        yield
    finally:
        os.close(descriptor)


def is_locked(descriptor: int) -> bool:
    """Whether this process could lock the open file or folder, and has."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def remove_stale() -> int:
    """Removes this user's segments of streaming that no process uses, and its stale lock files; counts the segments.

    The segments of one dataset stay or go together. What cannot be judged stays.
    """
    if not SEGMENT_DIR.is_dir():
        return 0  # not Linux
    removed = 0
    for _, group in itertools.groupby(own_files(SEGMENT_DIR, SEGMENT_NAME), key=lambda pair: pair[1]):
        paths = [path for path, _ in group]
        with contextlib.suppress(OSError), contextlib.ExitStack() as leases:
            for path in paths:
                leases.enter_context(sole_user(path))
            for path in paths:
                path.unlink()
                removed += 1
    # A dataset makes its first segment before its lock files and keeps it: without a segment nobody uses the locks.
    in_use = {match[1] for match in map(SEGMENT_NAME.fullmatch, os.listdir(SEGMENT_DIR)) if match}  # noqa: PTH208
    for path, prefix in own_files(Path(tempfile.gettempdir()), LOCK_NAME):
        if prefix not in in_use:
            remove_lock(path)
    return removed


def own_files(directory: Path, pattern: re.Pattern[str]) -> list[tuple[Path, str]]:
    """This user's regular files with one of streaming's names, by name, each with its dataset's number."""
    found = []
    for match in filter(None, map(pattern.fullmatch, sorted(os.listdir(directory)))):  # noqa: PTH208 - names alone
        path = directory / match.string
        with contextlib.suppress(FileNotFoundError):
            status = path.lstat()
            if stat.S_ISREG(status.st_mode) and status.st_uid == os.getuid():
                found.append((path, match[1]))
    return found


@contextlib.contextmanager
def sole_user(path: Path) -> Iterator[None]:
    """Holds a write lease: proof that no other process has the file mapped or open; raises OSError without it.

    The kernel grants one only then, and it knows more than /proc shows: the processes of other containers and those
    that nobody may look into. A mapping counts after its descriptor is closed.
    """
    descriptor = os.open(path, os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        # A process that opens the file now waits for the lease to end, and its holder is sent a signal: one that is
        # ignored by default, for SIGIO would end this process.
        fcntl.fcntl(descriptor, fcntl.F_SETSIG, signal.SIGURG)
        fcntl.fcntl(descriptor, fcntl.F_SETLEASE, fcntl.F_WRLCK)
        try:
            yield
        finally:
            fcntl.fcntl(descriptor, fcntl.F_SETLEASE, fcntl.F_UNLCK)
    finally:
        os.close(descriptor)


def remove_lock(path: Path) -> None:
    """Deletes a lock file, unless somebody holds its lock."""
    with contextlib.suppress(OSError), path.open("rb") as file:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        path.unlink()
