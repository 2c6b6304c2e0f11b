"""An output directory that appears whole or not at all, and the work on it, which is kept until it does.

Nothing is deleted here but what a build made: its staging folder, and the dataset that it was told to replace.
"""

from __future__ import annotations

import os
import re
import shutil
import tempfile
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import click
import orjson

from mft_data.dataset.dataset_dir import MANIFEST, REJECTS
from mft_data.dataset.plan_document import PRODUCER, is_plan, plan_difference
from mft_data.errors import DataError

if TYPE_CHECKING:
    from collections.abc import Iterator

PLAN = "plan.json"
PART = "part.json"
FILES = "files.json"
CHUNKS = "chunks"
LOCK = "lock"
SCRATCH = "scratch"
DATASET = "dataset"
UPLOADED = "uploaded.jsonl"
KEPT = "the finished work is kept in {}: give --resume to go on with it, or --overwrite to begin anew"
# What the folder of a dataset and of a part can hold, by the paths of files in it.
DATASET_FILES = re.compile(
    rf"{re.escape(MANIFEST)}|{re.escape(REJECTS)}|tokenizer/[^/]+"
    r"|(?:train|validation)/[^/]+/(?:index\.json|shard\.\d{5,}\.mds)"
)
PART_FILES = re.compile(
    rf"{'|'.join(map(re.escape, (PLAN, PART, FILES)))}|tokenizer/[^/]+"
    rf"|{CHUNKS}/(?:\d{{6,}}\.json|\d{{6,}}\.\d{{4,}}/[^/]+)"
)
# What the folder of an unfinished build can hold.
STAGING_NAMES = {PLAN, PART, FILES, CHUNKS, "tokenizer", LOCK, SCRATCH, DATASET, UPLOADED}


def check_output(out: Path, is_overwrite: bool, source_paths: list[Path]) -> None:
    """Raises DataError if `out` lies in or around a source, or exists and may not be replaced."""
    resolved = out.resolve()
    for path in source_paths:
        source = path.resolve()
        if resolved == source or source in resolved.parents or resolved in source.parents:
            raise DataError(f'output "{out}" and source "{path}" lie in each other', fix="write somewhere else")
    if out.is_dir():
        if not any(out.iterdir()):
            return
        if not is_overwrite:
            raise DataError(f'output "{out}" is not empty', fix="give --overwrite to replace it")
        if not (is_produced(out / MANIFEST) or ((out / PART).is_file() and is_plan(out / PLAN))):
            raise DataError(f'output "{out}" is not a dataset', fix="remove it yourself to build there")
        if other := stranger(out, PART_FILES if (out / PART).is_file() else DATASET_FILES):
            raise DataError(f'output "{out}" holds {other!a}, which no build put there', fix="move it away first")
    elif out.exists():
        raise DataError(f'output "{out}" is a file', fix="give the name of a folder")


def stranger(out: Path, files: re.Pattern[str]) -> str | None:
    """The first file or link in a folder whose path in it is none of `files`, None if there is none."""
    for path in sorted(out.rglob("*")):
        name = path.relative_to(out).as_posix()
        if path.is_symlink() or (not path.is_dir() and not files.fullmatch(name)):
            return name
    return None


def is_produced(path: Path) -> bool:
    """Whether a file is a manifest that this package wrote."""
    try:
        return orjson.loads(path.read_bytes())["producer"].startswith(PRODUCER)
    except (OSError, ValueError, TypeError, KeyError, AttributeError):
        return False


def staging_path(out: Path) -> Path:
    """Where the work on `out` lies until it is done."""
    return out.parent / f".{out.name}.partial"


@contextmanager
def staging_dir(out: Path, is_resume: bool, is_overwrite: bool) -> Iterator[Path]:
    """The build folder beside `out`, for this process alone, which is deleted at the end.

    After an error it stays, if any chunk is finished, and the error names it. The work of an unfinished build is gone
    on with if `is_resume`, deleted if `is_overwrite`, and else in the way. Raises DataError for that, or if another
    process builds there.
    """
    out = out.resolve()
    staging = staging_path(out)
    out.parent.mkdir(parents=True, exist_ok=True)
    if staging.is_symlink() or (staging.exists() and not is_staging(staging)):
        raise DataError(f'"{staging}" is in the way, and no build made it', fix="move it away")
    staging.mkdir(exist_ok=True)
    with locked(staging / LOCK, out):
        if has_chunks(staging) and not (is_resume or is_overwrite):
            raise DataError(
                f'an earlier build of "{out}" was not finished',
                where=str(staging),
                fix="give --resume to go on with it, or --overwrite to begin anew",
            )
        if not is_resume:
            empty_staging(staging)
        (staging / PLAN).touch()
        shutil.rmtree(staging / SCRATCH, ignore_errors=True)
        (staging / SCRATCH).mkdir()
        try:
            yield staging
        except KeyboardInterrupt:
            if has_chunks(staging):
                click.echo(f"\n{KEPT.format(staging)}", err=True, nl=False)
            raise
        except BaseException as error:
            if not has_chunks(staging):
                shutil.rmtree(staging, ignore_errors=True)
                raise
            raise keeping(error, staging) from error
        shutil.rmtree(staging, ignore_errors=True)


def is_staging(staging: Path) -> bool:
    """Whether a folder is that of an unfinished build, or an empty one."""
    if not staging.is_dir():
        return False
    names = {path.name for path in staging.iterdir()}
    return not names - {LOCK} or (names <= STAGING_NAMES and is_plan(staging / PLAN))


def has_chunks(staging: Path) -> bool:
    """Whether there is finished work in the folder of a build."""
    return any(not path.name.startswith(".") for path in (staging / CHUNKS).glob("*"))


def empty_staging(staging: Path) -> None:
    """Removes what an earlier build has left in its folder, all but the lock."""
    for path in staging.iterdir():
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        elif path.name != LOCK:
            path.unlink()


def keeping(error: BaseException, staging: Path) -> BaseException:
    """The error with a word on the finished work; one of the program's own is left as it is."""
    kept = KEPT.format(staging)
    if isinstance(error, DataError):
        return error.noted(kept)
    if isinstance(error, OSError) and not isinstance(error, BrokenPipeError):
        return DataError.of_system(error).noted(kept)
    return error


def begin(staging: Path, plan: bytes) -> None:
    """Notes what is built in a staging folder; raises DataError if something else was begun there."""
    path = staging / PLAN
    found = path.read_bytes()
    if found and found != plan:
        difference = f"{plan_difference(found, plan)} is another"
        raise DataError(
            f"the sources or the options are not those of the build to resume ({difference})",
            where=str(staging),
            fix="build anew with --overwrite",
        )
    path.write_bytes(plan)
    (staging / CHUNKS).mkdir(exist_ok=True)


@contextmanager
def locked(path: Path, out: Path) -> Iterator[None]:
    """Holds a lock file, which the kernel releases should this process die."""
    import fcntl

    with path.open("a") as handle:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            # The one who held it before may have removed it just now.
            is_ours = path.exists() and path.stat().st_ino == os.fstat(handle.fileno()).st_ino
        except BlockingIOError:
            is_ours = False
        if not is_ours:
            raise DataError(f'another process is building "{out}"', fix="wait for it or write somewhere else")
        yield


def publish(staged: Path, out: Path, is_overwrite: bool) -> None:
    """Makes sure that a finished folder is on disk, then gives it the name `out`; an old dataset is deleted last."""
    sync_tree(staged)
    check_output(out, is_overwrite, [])  # hours have passed
    out = out.resolve()
    replace_dir(staged, out)
    sync_dir(out.parent)


def sync_tree(directory: Path) -> None:
    """Makes sure that all files and folders of a tree are on disk."""
    for path in [directory, *directory.rglob("*")]:
        sync_dir(path)


def sync_dir(path: Path) -> None:
    """Makes sure that a file, or the names in a folder, are on disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def replace_dir(staged: Path, out: Path) -> None:
    """Moves `staged` to `out`; an old `out` is moved aside first, into a folder of its own, and deleted last."""
    if not out.is_dir() or not any(out.iterdir()):
        staged.rename(out)  # takes the place of an empty folder, too
        return
    aside = Path(tempfile.mkdtemp(prefix=f".{out.name}.old-", dir=out.parent))
    try:
        out.rename(aside / "dataset")
        try:
            staged.rename(out)
        except OSError:
            (aside / "dataset").rename(out)
            raise
    except OSError:
        aside.rmdir()
        raise
    shutil.rmtree(aside, ignore_errors=True)
