"""Datasets on object stores: built here, then uploaded by mosaicml-streaming, the manifest last."""

from __future__ import annotations

import hashlib
import logging
import shutil
import tempfile
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from mft_data.dataset.dataset_dir import MANIFEST
from mft_data.errors import DataError

if TYPE_CHECKING:
    from collections.abc import Iterator


@contextmanager
def local_output(out: str) -> Iterator[Path]:
    """The local path to build `out` at; what lies there at the end is uploaded if `out` is remote, such as s3://.

    A remote dataset is built in the temporary folder (TMPDIR), in a place of its own, so that a killed build can be
    resumed. Raises DataError if there is a dataset at `out`, or it cannot be reached.
    """
    if "://" not in out:
        yield Path(out)
        return
    logging.getLogger("streaming").setLevel(logging.CRITICAL)
    remote = out.rstrip("/")
    check_remote(remote)
    folder = Path(tempfile.gettempdir(), f"mft-data-{hashlib.sha256(remote.encode()).hexdigest()[:16]}")
    shutil.rmtree(folder / "dataset", ignore_errors=True)
    yield folder / "dataset"
    upload(folder / "dataset", remote)
    shutil.rmtree(folder, ignore_errors=True)


def check_remote(remote: str) -> None:
    """Raises DataError if `remote` holds a dataset already, or its store cannot be reached."""
    from streaming.base.storage import CloudDownloader, CloudUploader

    with tempfile.TemporaryDirectory() as folder:
        try:
            CloudUploader.get((folder, remote))  # asks for the bucket
        # Each store's client raises its own kinds.
        except Exception as error:
            raise unreachable(remote, error) from error
        try:
            CloudDownloader.direct_download(f"{remote}/{MANIFEST}", str(Path(folder, MANIFEST)))
        except Exception as error:
            if isinstance(error, FileNotFoundError) or "not found" in str(error).lower():
                return
            raise unreachable(remote, error) from error
    raise DataError(f'output "{remote}" holds a dataset already', fix="remove it or write somewhere else")


def upload(dataset_dir: Path, remote: str) -> None:
    """Uploads every file of a finished dataset, the manifest last; raises DataError."""
    from streaming.base.storage import CloudUploader

    files = sorted(path.relative_to(dataset_dir).as_posix() for path in dataset_dir.rglob("*") if path.is_file())
    files.remove(MANIFEST)
    try:
        uploader = CloudUploader.get((str(dataset_dir), remote), keep_local=True, exist_ok=True)
        for name in [*files, MANIFEST]:
            uploader.upload_file(name)
    # Each store's client raises its own kinds.
    except Exception as error:
        raise unreachable(remote, error) from error


def unreachable(remote: str, error: Exception) -> DataError:
    """The error for a store that does not answer as it should."""
    reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
    return DataError(f'"{remote}" cannot be written: {reason}', fix="check the location and its credentials")
