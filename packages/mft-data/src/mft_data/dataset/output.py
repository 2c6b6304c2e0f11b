"""Where a finished dataset goes: to a folder, by one rename, or to an object store, the manifest last."""

from __future__ import annotations

import hashlib
import logging
import tempfile
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import orjson

from mft_data.dataset.dataset_dir import MANIFEST
from mft_data.dataset.staging import UPLOADED, check_output, publish, staging_dir
from mft_data.errors import DataError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from contextlib import AbstractContextManager


@dataclass(frozen=True, slots=True)
class FolderOutput:
    """A folder that is to hold a dataset or a part of a build."""

    path: Path

    def check(self, is_overwrite: bool, source_paths: list[Path]) -> None:
        """Raises DataError unless a dataset can be put there."""
        check_output(self.path, is_overwrite, source_paths)

    def staging(self, is_resume: bool, is_overwrite: bool) -> AbstractContextManager[Path]:
        """The folder to work in, beside the output; see `staging_dir`."""
        return staging_dir(self.path, is_resume, is_overwrite)

    def publish(self, staged: Path, is_overwrite: bool) -> None:
        """Gives a finished folder its name."""
        publish(staged, self.path, is_overwrite)


@dataclass(frozen=True, slots=True)
class RemoteOutput:
    """A location such as s3://bucket/dataset, written by mosaicml-streaming's uploader."""

    url: str

    @property
    def folder(self) -> Path:
        """The folder in the temporary one (TMPDIR) where this dataset, and no other, is worked on."""
        return Path(tempfile.gettempdir(), f"mft-data-{hashlib.sha256(self.url.encode()).hexdigest()[:16]}")

    def check(self, is_overwrite: bool, source_paths: list[Path]) -> None:  # noqa: ARG002
        """Raises DataError if there is a dataset at the location already, or it cannot be reached."""
        logging.getLogger("streaming").setLevel(logging.CRITICAL)
        check_remote(self.url)

    @contextmanager
    def staging(self, is_resume: bool, is_overwrite: bool) -> Iterator[Path]:
        """The folder to work in; see `staging_dir`."""
        try:
            with staging_dir(self.folder / "dataset", is_resume, is_overwrite) as staging:
                yield staging
        finally:
            with suppress(OSError):  # the work of a failed build stays in it
                self.folder.rmdir()

    def publish(self, staged: Path, is_overwrite: bool) -> None:  # noqa: ARG002
        """Uploads every file of a finished dataset that was not uploaded before; raises DataError."""
        upload(staged, self.url, staged.parent / UPLOADED)


Output = FolderOutput | RemoteOutput


def output_at(location: str) -> Output:
    """The output at a path, or at a location with a scheme."""
    return RemoteOutput(location.rstrip("/")) if "://" in location else FolderOutput(Path(location))


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


def upload(dataset_dir: Path, remote: str, uploaded_path: Path) -> None:
    """Uploads every file of a finished dataset, the manifest last; raises DataError.

    `uploaded_path` lists what is there already, a line for each file: an upload that failed is gone on with.
    """
    from streaming.base.storage import CloudUploader

    files = sorted(path.relative_to(dataset_dir).as_posix() for path in dataset_dir.rglob("*") if path.is_file())
    files.remove(MANIFEST)
    done = uploaded_path.read_bytes().splitlines() if uploaded_path.exists() else []
    try:
        uploader = CloudUploader.get((str(dataset_dir), remote), keep_local=True, exist_ok=True)
        with uploaded_path.open("ab") as handle:
            for name in [*files, MANIFEST]:
                digest = hashlib.sha256((dataset_dir / name).read_bytes()).hexdigest()
                entry = orjson.dumps([name, digest])
                if entry not in done:
                    uploader.upload_file(name)
                    handle.write(entry + b"\n")
                    handle.flush()
    # Each store's client raises its own kinds.
    except Exception as error:
        raise unreachable(remote, error) from error


def unreachable(remote: str, error: Exception) -> DataError:
    """The error for a store that does not answer as it should."""
    reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
    return DataError(f'"{remote}" cannot be written: {reason}', fix="check the location and its credentials")
