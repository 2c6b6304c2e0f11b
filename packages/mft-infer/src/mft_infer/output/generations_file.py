"""The generations file: appended line by line while it grows, put in order by one rename when all is there."""

import os
import secrets
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any

import orjson

from mft_infer.errors import InferError

# A line is with the system at once, and on the disk after at most so many seconds.
SYNC_SECONDS = 1.0

Key = tuple[str, int]


def check_out(path: Path, *, overwrite: bool, resume: bool) -> None:
    """Refuse a file that is there already, unless it may be replaced or gone on with."""
    if path.is_dir():
        raise InferError(f"{path} is a directory", fix="name a file")
    if is_stream(path):
        if resume:
            raise InferError(f"{path} is no file that can be read again", fix="leave out --resume")
        return
    if path.exists() and not overwrite and not resume:
        raise InferError(f"{path} exists", fix="choose another OUT, or use --resume or --overwrite")


def is_stream(path: Path) -> bool:
    """Whether the path is a device or a named pipe, which takes lines and gives none back."""
    return path.exists() and not path.is_file() and not path.is_dir()


class GenerationsFile:
    """An open generations file that this process alone appends to; leaving it closes it with every line on disk.

    With `empty`, what it held goes once there is a line to take its place.
    """

    def __init__(self, path: Path, *, empty: bool) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self._path = path
        self._file = path.open("ab")
        try:
            _lock(self._file.fileno(), path)
        except InferError:
            self._file.close()
            raise
        self._is_stale = empty
        self._synced = time.monotonic()

    def __enter__(self) -> "GenerationsFile":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with naming(self._path), self._file:
            if self._is_stale and kind is None:
                self._file.truncate(0)
            os.fsync(self._file.fileno())

    def append(self, line: bytes) -> None:
        """Add a line, which a kill of this process no longer takes away."""
        with naming(self._path):
            if self._is_stale:
                self._file.truncate(0)
                self._is_stale = False
            self._file.write(line)
            self._file.flush()
            if time.monotonic() - self._synced > SYNC_SECONDS:
                os.fsync(self._file.fileno())
                self._synced = time.monotonic()

    def replace(self, lines: Iterable[bytes]) -> None:
        """Make the file hold these lines, by one rename, and go on appending to it."""
        # A name that nobody else has: what lies beside OUT is not ours to write over.
        partial_path = self._path.parent / f".{self._path.name}.{secrets.token_hex(8)}.partial"
        file = partial_path.open("xb")
        try:
            _lock(file.fileno(), partial_path)
            with naming(self._path):
                file.writelines(lines)
                file.flush()
                os.fsync(file.fileno())
            partial_path.replace(self._path)
        finally:
            partial_path.unlink(missing_ok=True)
        self._file.close()
        self._file, self._is_stale = file, False


@contextmanager
def naming(path: Path) -> Iterator[None]:
    """Adds the file to an error of writing, which does not know it: a full disk, as a rule."""
    try:
        yield
    except OSError as error:
        error.filename = str(path)
        raise


def read_lines(path: Path) -> list[tuple[dict[str, Any], bytes]]:
    """The whole lines of a generations file, decoded and as they are; what a kill left of the last one is left out."""
    lines = path.read_bytes().split(b"\n")[:-1] if path.exists() else []
    return [(_decoded(line, f"{path} line {number}"), line + b"\n") for number, line in enumerate(lines, start=1)]


def _decoded(line: bytes, where: str) -> dict[str, Any]:
    try:
        record = orjson.loads(line)
    except orjson.JSONDecodeError as error:
        raise InferError(f"invalid JSON ({error.msg})", where=where, fix="choose another OUT") from error
    if not isinstance(record, dict):
        raise InferError("a generation is not a JSON object", where=where, fix="choose another OUT")
    return record


def _lock(descriptor: int, path: Path) -> None:
    """Keep other processes out until the file is closed."""
    import fcntl

    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        raise _busy(path) from error
    if not os.path.samestat(os.fstat(descriptor), path.stat()):
        # The other process has put the file in order since it was opened here.
        raise _busy(path)


def _busy(path: Path) -> InferError:
    return InferError("another process is writing the file", where=str(path))
