"""The directory beside OUT in which a merge grows: locked, found again after a kill, published by one rename.

.OUT.mft-merge/
  job.json        what is merged and how: only the same merge may go on here
  shards.jsonl    one line for every shard that is finished and on the disk
  model/          becomes OUT
  old/            what OUT was, for the moment of the exchange
"""

import fcntl
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import click
import orjson

from mft_merge.errors import MergeError
from mft_merge.files.json_file import read_json, write_json

JOB_NAME = "job.json"
SHARDS_NAME = "shards.jsonl"
SCRATCH_NAME = "verify"


class Staging:
    """A locked staging directory for one job; `finished` has the records of the shards that are done."""

    def __init__(self, out_dir: Path, directory: Path) -> None:
        self.out_dir = out_dir
        self.directory = directory
        self.model_dir = directory / "model"
        self.finished: dict[str, dict[str, Any]] = {}

    def record(self, shard_name: str, record: dict[str, Any]) -> None:
        """Note that a shard lies finished on the disk."""
        sync_directory(self.model_dir)
        with (self.directory / SHARDS_NAME).open("ab") as stream:
            stream.write(orjson.dumps({"shard": shard_name} | record) + b"\n")
            stream.flush()
            os.fsync(stream.fileno())
        self.finished[shard_name] = record

    def publish(self) -> None:
        """Put the model in the place of OUT."""
        for path in sorted(self.model_dir.rglob("*")):
            sync_directory(path) if path.is_dir() else _sync_file(path)
        sync_directory(self.model_dir)
        if self.out_dir.exists():
            self.out_dir.rename(self.directory / "old")
        self.model_dir.rename(self.out_dir)
        sync_directory(self.out_dir.parent)
        shutil.rmtree(self.directory)


def staging_dir(out_dir: Path) -> Path:
    """The name that no one else has beside `out_dir`."""
    return out_dir.parent / f".{out_dir.name}.mft-merge"


def recover(out_dir: Path) -> None:
    """Undo half an exchange: where OUT was moved away and nothing took its place, it is put back."""
    old = staging_dir(out_dir) / "old"
    if old.exists() and not out_dir.exists():
        with _locked(out_dir):
            old.rename(out_dir)


def discard(out_dir: Path) -> None:
    """Remove what a merge left beside its finished result."""
    directory = staging_dir(out_dir)
    if directory.exists():
        with _locked(out_dir):
            _check_own(directory)
            shutil.rmtree(directory)


@contextmanager
def staged(out_dir: Path, job: dict[str, Any], *, resume: bool) -> Iterator[Staging]:
    """The staging directory of this job, emptied first, or with the finished shards of an earlier call to resume.

    If the block fails before any shard is finished nothing is left; after that, what is finished stays for `--resume`.
    """
    out_dir.parent.mkdir(parents=True, exist_ok=True)
    directory = staging_dir(out_dir)
    is_new = not directory.exists()
    directory.mkdir(exist_ok=True)
    with _locked(out_dir):
        staging = Staging(out_dir, directory)
        if not is_new:
            _take_over(staging, job, resume=resume)
        staging.model_dir.mkdir(exist_ok=True)
        partial = directory / f"{JOB_NAME}.partial"
        write_json(partial, job)
        partial.replace(directory / JOB_NAME)
        try:
            yield staging
        except BaseException:
            _leave(staging)
            raise


@contextmanager
def _locked(out_dir: Path) -> Iterator[None]:
    """The staging directory held against other processes; the lock of a killed one is gone with it."""
    directory = staging_dir(out_dir)
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise MergeError(f"another mft-merge is writing {out_dir}", where=str(directory)) from error
        yield
    finally:
        os.close(descriptor)


def _check_own(directory: Path) -> set[str]:
    """The names in a staging directory, none of which may be another's."""
    names = {path.name for path in directory.iterdir()}
    if not names <= {JOB_NAME, f"{JOB_NAME}.partial", SHARDS_NAME, "model", "old", SCRATCH_NAME}:
        raise MergeError(f"{directory} is not what mft-merge left there", fix="look into it and remove it")
    return names


def _take_over(staging: Staging, job: dict[str, Any], *, resume: bool) -> None:
    """Empty what an earlier call left, or take its finished shards."""
    names = _check_own(staging.directory)
    old_job = read_json(staging.directory / JOB_NAME) if JOB_NAME in names else None
    if resume and old_job is not None:
        changed = sorted(key for key in old_job.keys() | job.keys() if old_job.get(key) != job.get(key))
        if changed:
            raise MergeError(
                f"the unfinished merge had another {', '.join(changed)}",
                where=str(staging.directory),
                fix="start anew without --resume",
            )
        staging.finished = _finished_shards(staging.directory / SHARDS_NAME)
        return
    if old_job is not None:
        click.echo(f"note: an unfinished merge is removed, in {staging.directory}", err=True)
    for name in names:
        path = staging.directory / name
        shutil.rmtree(path) if path.is_dir() else path.unlink()


def _finished_shards(path: Path) -> dict[str, dict[str, Any]]:
    """The records of finished shards; a last line that was cut off is of a shard that is not."""
    lines = path.read_bytes().split(b"\n")[:-1] if path.exists() else []
    records = [orjson.loads(line) for line in lines]
    return {record.pop("shard"): record for record in records}


def _leave(staging: Staging) -> None:
    """After a failure: keep what is finished, and say so, or leave nothing."""
    if staging.finished:
        click.echo(
            f"note: {len(staging.finished)} finished shards are kept in {staging.directory}, go on with --resume",
            err=True,
        )
    else:
        shutil.rmtree(staging.directory, ignore_errors=True)


def sync_directory(directory: Path) -> None:
    """Bring the names in a directory to the disk."""
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _sync_file(path: Path) -> None:
    with path.open("rb") as stream:
        os.fsync(stream.fileno())
