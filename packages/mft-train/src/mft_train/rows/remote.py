"""A dataset in an object store: what is fetched of it, where it is kept on this machine, and proof of every byte.

The manifest has the hashes of the tokenizer's files and of every index, an index those of its shards. A file is
fetched under another name, compared, and only then gets its own: what lies in the cache is what the manifest says.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import re
import tempfile
import threading
import time
import urllib.parse
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import orjson

from mft_train.errors import TrainError, first_line

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from streaming import Stream

SCHEMES = ("s3", "gs", "azure", "hf", "oci")
ATTEMPTS = 4
FIRST_WAIT_SECONDS = 0.5  # doubled before each further attempt
CONTENT_HASH = re.compile(rb',\n  "content_sha256": "([0-9a-f]{64})"\n\}\n\Z')
OPEN = threading.local()  # downloaders by location
LEAST_SHARDS = 4  # that a bounded cache must have room for: streaming's own condition


@dataclass(frozen=True, slots=True)
class Store:
    """A place in an object store; `timeout_seconds` is how long it may send nothing."""

    location: str
    timeout_seconds: float

    def fetch(self, name: str, target: Path, is_right: Callable[[Path], bool]) -> None:
        """Makes `target` of the object `name`, by one rename; raises TrainError unless its bytes are right.

        What fails, stalls or comes with other bytes is fetched again, up to ATTEMPTS times in all.
        """
        target.parent.mkdir(parents=True, exist_ok=True)
        problem: Exception | str = ""
        for attempt in range(ATTEMPTS):
            if attempt:
                time.sleep(FIRST_WAIT_SECONDS * 2 ** (attempt - 1))
            with tempfile.TemporaryDirectory(dir=target.parent, prefix=".fetch-") as folder:
                path = Path(folder) / "object"
                try:
                    self.download(name, path)
                except Exception as error:  # every store's client raises its own kinds
                    problem = error
                    continue
                if not is_right(path):
                    problem = "its bytes are not those that were written"
                    continue
                with path.open("rb") as file:
                    os.fsync(file.fileno())
                path.replace(target)
                return
        reason = problem if isinstance(problem, str) else first_line(problem)
        raise TrainError(
            f"{self.location}/{name} cannot be fetched: {reason}",
            fix="check the store and your credentials for it, or build and upload the dataset anew",
        ) from (problem if isinstance(problem, Exception) else None)

    def download(self, name: str, path: Path) -> None:
        """One attempt, by streaming's downloader for this kind of store: one a thread, a new one after a failure."""
        from streaming.base.storage import CloudDownloader

        downloader = OPEN.__dict__.setdefault(self.location, CloudDownloader.get(self.location))
        try:
            downloader.download(f"{self.location}/{name}", str(path), self.timeout_seconds)
        except BaseException:
            del OPEN.__dict__[self.location]
            downloader.clean_up()
            raise


@dataclass(frozen=True, slots=True)
class Cache:
    """Where datasets of stores are kept on this machine, and how many bytes one of them may take; None: all of it."""

    directory: Path
    limit_bytes: int | None
    timeout_seconds: float


def is_remote(location: str) -> bool:
    """Whether a dataset lies in a store; raises TrainError for a kind of store that is not known."""
    scheme = urllib.parse.urlparse(location).scheme if "://" in location else ""
    if scheme and scheme not in SCHEMES:
        known = ", ".join(f"{name}://" for name in SCHEMES)
        raise TrainError(f'dataset "{location}" is in no store that is known', fix=f"give a directory, or {known}")
    return bool(scheme)


def fetch_manifest(store: Store, cache: Cache) -> bytes:
    """The manifest's bytes: once on this machine for all processes of a run; raises TrainError."""
    folder = cache.directory / "manifests"
    place = hashlib.sha256(store.location.encode()).hexdigest()[:16]
    path = folder / f"{place}-{starter()}.json"
    with locked(folder):
        for other in folder.glob(f"{place}-*.json"):
            if other != path and not is_alive(other.stem.removeprefix(f"{place}-")):
                other.unlink()
        if not path.is_file():
            store.fetch("manifest.json", path, is_whole_manifest)
        return path.read_bytes()


def is_whole_manifest(path: Path) -> bool:
    """Whether a manifest has the bytes that it was written with: its last field is the hash of all others."""
    content = path.read_bytes()
    found = CONTENT_HASH.search(content)
    return found is not None and hashlib.sha256(content[: found.start()] + b"\n}\n").hexdigest().encode() == found[1]


def starter() -> str:
    """What started this run on this machine, the same for all of its processes here: its process, and since when."""
    is_rank = "RANK" in os.environ or "SLURM_PROCID" in os.environ
    pid = os.getppid() if is_rank else os.getpid()
    return f"{pid}-{start_time(pid)}"


def start_time(pid: int) -> str:
    """When a process began, in ticks since the machine did; empty if there is none of this number."""
    try:
        return Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()[19]
    except (OSError, IndexError):
        return ""


def is_alive(started: str) -> bool:
    """Whether the process that `starter` named is still there."""
    pid, _, since = started.partition("-")
    return pid.isdecimal() and bool(since) and start_time(int(pid)) == since


def fetch_dataset(store: Store, cache: Cache, manifest: dict[str, Any], manifest_sha256: str) -> Path:
    """The cached directory of a dataset: tokenizer, indexes and validation rows are there, training rows come later.

    Every process of a run calls this; the first one on a machine fetches, the others wait for it. Raises TrainError.
    """
    root = cache.directory / manifest_sha256
    with locked(root):
        for name, sha256 in manifest["tokenizer_files"].items():
            fetch_missing(store, root, f"tokenizer/{name}", sha256)
        for task in manifest["tasks"]:
            for split, counts in task["splits"].items():
                if not counts["rows"]:
                    continue
                folder = f"{split}/{task['name']}"
                fetch_missing(store, root, f"{folder}/index.json", counts["index_sha256"])
                for name, size, sha256 in shards(root / folder):
                    path = root / folder / name
                    if path.is_file() and path.stat().st_size != size:
                        path.unlink()  # a machine that went down may leave it so
                    if split == "validation":
                        fetch_missing(store, root, f"{folder}/{name}", sha256)
    return root


def fetch_missing(store: Store, root: Path, name: str, sha256: str) -> None:
    """Fetches what the cache has not."""
    if not (root / name).is_file():
        store.fetch(name, root / name, lambda path: file_sha256(path) == sha256)


def shards(folder: Path) -> list[tuple[str, int, str]]:
    """Name, bytes and sha256 of every shard that an index lists; raises TrainError for one without a hash."""
    path = folder / "index.json"
    found = []
    for shard in orjson.loads(path.read_bytes())["shards"]:
        raw = shard["raw_data"]
        if shard["zip_data"] is not None or "sha256" not in raw["hashes"]:
            raise TrainError("a shard is compressed or has no sha256", where=str(path), fix="build it with mft-data")
        found.append((raw["basename"], raw["bytes"], raw["hashes"]["sha256"]))
    return found


def training_limit(cache: Cache, root: Path, folders: list[Path]) -> int | None:
    """The bytes that training shards in `folders` may take beside everything else; None without a limit.

    Raises TrainError for a limit that has no room for a few of them.
    """
    if cache.limit_bytes is None:
        return None
    training = {folder / name: size for folder in folders for name, size, _ in shards(folder)}
    fixed = sum(path.stat().st_size for path in root.rglob("*") if path.is_file() and path not in training)
    indexes = sum((folder / "index.json").stat().st_size for folder in folders)
    limit = cache.limit_bytes - fixed + indexes  # streaming counts the indexes itself
    least = indexes + LEAST_SHARDS * max(training.values())
    if limit < least:
        raise TrainError(
            f"cache.limit {cache.limit_bytes} bytes is too low for this dataset",
            fix=f"set it to {cache.limit_bytes - limit + least} bytes or more, {LEAST_SHARDS} shards beside the rest",
        )
    return limit


def verified_stream() -> type[Stream]:
    """A Stream, local to streaming, that fetches a missing shard and lets it appear once its hash is the index's.

    streaming's own check comes after a shard has its name, where other processes already read it.
    """
    from streaming import Stream

    class VerifiedStream(Stream):
        def __init__(self, store: Store, folder: str, **settings: Any) -> None:
            super().__init__(**settings)
            self.store, self.folder = store, folder

        def _prepare_shard_part(self, raw_info: Any, zip_info: Any = None, compression: str | None = None) -> int:  # noqa: ARG002
            path = Path(self.local) / raw_info.basename
            if path.is_file():
                return 0
            sha256 = raw_info.hashes["sha256"]
            self.store.fetch(f"{self.folder}/{path.name}", path, lambda found: file_sha256(found) == sha256)
            return raw_info.bytes

    return VerifiedStream


def file_sha256(path: Path) -> str:
    """Hex digest of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@contextlib.contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Makes a folder, and keeps other processes of this machine out of the same stretch of code for it."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / ".lock").open("wb") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
