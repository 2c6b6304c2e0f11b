"""An output directory that appears whole or not at all."""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from mft_data.errors import DataError

PLAN = "plan.json"
PART = "part.json"


def check_output(out: Path, overwrite: bool, source_paths: list[Path]) -> None:
    """Raises DataError if `out` lies in or around a source, or exists and may not be replaced."""
    resolved = out.resolve()
    for path in source_paths:
        source = path.resolve()
        if resolved == source or source in resolved.parents or resolved in source.parents:
            raise DataError(f'output "{out}" and source "{path}" lie in each other', fix="write somewhere else")
    if out.is_dir():
        if not any(out.iterdir()):
            return
        if not overwrite:
            raise DataError(f'output "{out}" is not empty', fix="give --overwrite to replace it")
        if not ((out / "manifest.json").is_file() or (out / PART).is_file()):
            raise DataError(f'output "{out}" is not a dataset', fix="remove it yourself to build there")
    elif out.exists():
        raise DataError(f'output "{out}" is a file', fix="give the name of a folder")


@contextmanager
def staging_dir(out: Path, plan: bytes, is_resume: bool) -> Iterator[Path]:
    """The build folder beside `out`, for this process alone; `plan` says what is built in it.

    A folder that a killed build has left is gone on with if `is_resume`, else emptied. An error removes it; a kill or
    Ctrl-C leaves it for a resume. Raises DataError if another process builds there, or the plan has changed.
    """
    out = out.resolve()
    out.parent.mkdir(parents=True, exist_ok=True)
    staging = out.parent / f".{out.name}.partial"
    with locked(out.parent / f".{out.name}.lock", out):
        plan_path = staging / PLAN
        if is_resume and plan_path.is_file() and plan_path.read_bytes() != plan:
            raise DataError(
                "the sources or the options are not those of the build to resume",
                where=str(staging),
                fix="build anew without --resume",
            )
        if not (is_resume and plan_path.is_file()):
            shutil.rmtree(staging, ignore_errors=True)
            staging.mkdir()
            plan_path.write_bytes(plan)
        try:
            yield staging
        except KeyboardInterrupt:
            raise
        except BaseException:
            shutil.rmtree(staging, ignore_errors=True)
            raise
        shutil.rmtree(staging, ignore_errors=True)


@contextmanager
def locked(path: Path, out: Path) -> Iterator[None]:
    """Holds a lock file, which the kernel releases should this process die, and removes it at the end."""
    import fcntl

    with path.open("w") as handle:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            # The one who held it before may have removed it just now.
            is_ours = path.exists() and path.stat().st_ino == os.fstat(handle.fileno()).st_ino
        except BlockingIOError:
            is_ours = False
        if not is_ours:
            raise DataError(f'another process is building "{out}"', fix="wait for it or write somewhere else")
        try:
            yield
        finally:
            path.unlink(missing_ok=True)


def publish(staged: Path, out: Path) -> None:
    """Makes sure that a finished folder is on disk, then gives it the name `out`; an old `out` is deleted last."""
    sync_tree(staged)
    replace_dir(staged, out.resolve())


def sync_tree(directory: Path) -> None:
    """Makes sure that all files and folders of a tree are on disk."""
    for path in [directory, *directory.rglob("*")]:
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def replace_dir(staging: Path, out: Path) -> None:
    """Moves `staging` to `out`; an old `out` is moved aside first and deleted last."""
    old = out.parent / f"{staging.name}.old"
    if out.exists():
        out.rename(old)
    try:
        staging.rename(out)
    except OSError:
        if old.exists():
            old.rename(out)
        raise
    shutil.rmtree(old, ignore_errors=True)
