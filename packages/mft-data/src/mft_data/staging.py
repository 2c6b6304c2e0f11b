"""An output directory that appears whole or not at all."""

import os
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from mft_data.errors import DataError


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
        if not (out / "manifest.json").is_file():
            raise DataError(f'output "{out}" is not a dataset', fix="remove it yourself to build there")
    elif out.exists():
        raise DataError(f'output "{out}" is a file', fix="give the name of a folder")


@contextmanager
def staged_dir(out: Path) -> Iterator[Path]:
    """A new directory beside `out` that takes its place when the block ends, and is removed if it raises."""
    out = out.resolve()
    out.parent.mkdir(parents=True, exist_ok=True)
    staging = out.parent / f".{out.name}.partial-{secrets.token_hex(4)}"
    staging.mkdir()
    try:
        yield staging
        sync_tree(staging)
        replace_dir(staging, out)
    except BaseException:
        shutil.rmtree(staging, ignore_errors=True)
        raise


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
