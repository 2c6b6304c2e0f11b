"""Sources that are not files here: what stands at a location such as s3://bucket/folder, or on stdin."""

from __future__ import annotations

import logging
import shutil
import sys
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlparse

from mft_data.errors import DataError

if TYPE_CHECKING:
    from types import TracebackType

STDIN = "-"
# Of one file.
DOWNLOAD_SECONDS = 24 * 3600


def is_elsewhere(location: str) -> bool:
    """Whether a path of a source is no file or folder here."""
    return location == STDIN or "://" in location


@dataclass(slots=True)
class Fetched:
    """Copies of such sources, in a folder of the temporary one (TMPDIR) that is deleted at the end."""

    suffixes: tuple[str, ...]  # of the files that count
    folder: Path | None = None
    paths: dict[str, Path] = field(default_factory=dict)  # by location

    def __enter__(self) -> Fetched:
        return self

    def __exit__(self, _type: type | None, _error: BaseException | None, _trace: TracebackType | None) -> None:
        if self.folder is not None:
            shutil.rmtree(self.folder, ignore_errors=True)

    def fetch(self, location: str) -> Path:
        """The file or folder that a location was copied to; raises DataError or OSError."""
        if location in self.paths:
            if location == STDIN:
                raise DataError("stdin is named twice", fix="name one task with it")
            return self.paths[location]
        if self.folder is None:
            self.folder = Path(tempfile.mkdtemp(prefix="mft-data-sources-"))
        place = self.folder / str(len(self.paths))
        place.mkdir()
        self.paths[location] = copied_stdin(place) if location == STDIN else downloaded(location, place, self.suffixes)
        return self.paths[location]


def copied_stdin(folder: Path) -> Path:
    """A file in `folder` that holds all of stdin."""
    path = folder / "stdin.jsonl"
    with path.open("wb") as handle:
        shutil.copyfileobj(sys.stdin.buffer, handle)
    return path


def downloaded(location: str, folder: Path, suffixes: tuple[str, ...]) -> Path:
    """The copy, in `folder`, of the file at a location, or of the folder there; raises DataError.

    With mosaicml-streaming's clients and their environment variables.
    """
    from streaming.base.storage import CloudDownloader, CloudUploader

    logging.getLogger("streaming").setLevel(logging.CRITICAL)
    url = location.rstrip("/")
    name = url.rpartition("/")[2]
    try:
        downloader = CloudDownloader.get(url)
        if url.endswith(suffixes):
            downloader.download(url, str(folder / name), DOWNLOAD_SECONDS)
            return folder / name
        prefix = urlparse(url).path.strip("/")
        keys = CloudUploader.get((str(folder / "unused"), url), exist_ok=True).list_objects() or []
        for key in sorted(keys):
            inner = key.removeprefix(prefix).lstrip("/")
            is_inside = not prefix or key.startswith(f"{prefix}/")
            if is_inside and inner.endswith(suffixes) and not any(part.startswith(".") for part in inner.split("/")):
                downloader.download(f"{url}/{inner}", str(folder / name / inner), DOWNLOAD_SECONDS)
        if not (folder / name).is_dir():
            raise DataError(f'"{location}" has no file that ends in {", ".join(suffixes)}')
        return folder / name
    except (DataError, OSError) as error:
        if isinstance(error, FileNotFoundError):
            raise DataError(f'source "{location}" does not exist') from error
        raise
    except NotImplementedError as error:
        raise DataError(f'the files at "{location}" cannot be listed', fix="name each file by itself") from error
    # Each store's client raises its own kinds.
    except Exception as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        if "not found" in reason.lower():
            raise DataError(f'source "{location}" does not exist') from error
        fix = "check the location and its credentials"
        raise DataError(f'"{location}" cannot be read: {reason}', fix=fix) from error
