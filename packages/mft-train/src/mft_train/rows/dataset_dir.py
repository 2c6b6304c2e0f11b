"""Reader of the dataset directory: its manifest and its validation rows."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import orjson

from mft_train.errors import TrainError
from mft_train.rows.packed_batch import Row
from mft_train.rows.remote import Cache, Store, fetch_dataset, fetch_manifest, is_remote

if TYPE_CHECKING:
    from collections.abc import Iterator

# The versions that are read, and what a manifest of the second may say of its rows.
FORMAT_VERSIONS = ("1", "2")
FEATURES = {"segment_weights"}
PAIRS = "segment_sides"


@dataclass(frozen=True, slots=True)
class Task:
    """One task of the dataset; `task_id` is its position in the manifest's list."""

    name: str
    task_id: int
    train_rows: int
    train_tokens: int
    train_supervised_tokens: int
    validation_rows: int
    train_conversations: int


@dataclass(frozen=True, slots=True)
class DatasetDir:
    """What training needs to know of a dataset directory."""

    path: Path
    seq_length: int
    tasks: tuple[Task, ...]
    max_token_id: int
    is_packed: bool  # whether some row holds more than one conversation
    manifest_sha256: str
    is_weighted: bool  # whether some conversation counts more or less than once
    remote: tuple[Store, Cache] | None = None  # where training rows come from when they are needed

    @property
    def tokenizer_dir(self) -> Path:
        """Tokenizer files and chat template, which travel with the model."""
        return self.path / "tokenizer"

    @property
    def trained_tasks(self) -> list[Task]:
        """The tasks with training rows, in task order."""
        return [task for task in self.tasks if task.train_rows]

    def split_dir(self, split: str, task: Task) -> Path:
        """The MDS stream of one task in `train` or `validation`."""
        return self.path / split / task.name


def open_dataset(location: str, cache: Cache | None = None) -> DatasetDir:
    """Reads and checks the manifest of a complete dataset; raises TrainError.

    Of one in a store the manifest, the tokenizer and the validation rows are fetched into the cache first.
    """
    if cache is not None and is_remote(location):
        store = Store(location.rstrip("/"), cache.timeout_seconds)
        content = fetch_manifest(store, cache)
        dataset = read_manifest(content, Path(location))
        root = fetch_dataset(store, cache, orjson.loads(content), dataset.manifest_sha256)
        return replace(dataset, path=root, remote=(store, cache))
    path = Path(location)
    if not path.is_dir():
        raise TrainError(f'dataset "{location}" is not a directory', fix="make one with `mft-data build`")
    try:
        return read_manifest((path / "manifest.json").read_bytes(), path)
    except FileNotFoundError as error:
        raise TrainError("the dataset has no manifest.json", where=str(path), fix="let `mft-data build` end") from error
    except OSError as error:
        where = str(path / "manifest.json")
        raise TrainError("the manifest cannot be read", where=where, fix="build the dataset anew") from error


def read_manifest(content: bytes, path: Path) -> DatasetDir:
    """What a manifest says of the dataset in `path`; raises TrainError for one that is damaged or not known."""
    manifest_path = path / "manifest.json"
    try:
        manifest = orjson.loads(content)
        unknown = sorted(set(manifest.get("features", ())) - FEATURES)
        if PAIRS in unknown:
            raise TrainError(
                "the dataset has pairs of chosen and rejected answers, which mft-train does not train on",
                where=str(manifest_path),
                fix="build it without those tasks, or from the chosen answers alone (--format, --field)",
            )
        if manifest["format_version"] not in FORMAT_VERSIONS or unknown:
            what = f"feature {unknown[0]}" if unknown else f"format_version {manifest['format_version']}"
            raise TrainError(
                f"{what} is not known",
                where=str(manifest_path),
                fix="use the mft-train that matches this mft-data",
            )
        return DatasetDir(
            path=path,
            seq_length=manifest["seq_length"],
            tasks=tuple(read_task(entry) for entry in manifest["tasks"]),
            max_token_id=manifest["max_token_id"],
            is_packed=any(
                split["conversations"] > split["rows"]
                for entry in manifest["tasks"]
                for split in entry["splits"].values()
            ),
            manifest_sha256=hashlib.sha256(content).hexdigest(),
            is_weighted="segment_weights" in manifest.get("features", ()),
        )
    except (orjson.JSONDecodeError, KeyError, TypeError) as error:
        raise TrainError(
            "the manifest cannot be read", where=str(manifest_path), fix="build the dataset anew"
        ) from error


def read_task(entry: dict[str, Any]) -> Task:
    """The Task of a manifest entry."""
    train, validation = entry["splits"]["train"], entry["splits"]["validation"]
    return Task(
        name=entry["name"],
        task_id=entry["task_id"],
        train_rows=train["rows"],
        train_tokens=train["tokens"],
        train_supervised_tokens=train["supervised_tokens"],
        validation_rows=validation["rows"],
        train_conversations=train["conversations"],
    )


def to_row(sample: dict[str, Any]) -> Row:
    """The Row of one MDS sample."""
    weights = sample.get("segment_weights")
    return Row(sample["input_ids"], sample["loss_mask"], sample["segment_lengths"], int(sample["task_id"]), weights)


# Keeps the choice of validation rows apart from every other use of a generator.
SUBSET_STREAM = 0x5B5E7


def validation_rows(dataset: DatasetDir, rank: int, world_size: int, most: int | None = None) -> Iterator[Row]:
    """This rank's validation rows: over all ranks every row counts once, and every rank has as many rows.

    Of a task with more than `most` rows a subset counts, the same for every run on this dataset.
    A rank for which none is left at the end has the last row again, without a supervised token.
    """
    from streaming import LocalDataset

    streams = [
        (task, LocalDataset(local=str(dataset.split_dir("validation", task))))
        for task in dataset.tasks
        if task.validation_rows
    ]
    places = [
        (stream, index)
        for task, stream in streams
        for index in chosen_rows(dataset.manifest_sha256, task.task_id, len(stream), most)
    ]
    for start in range(0, len(places), world_size):
        stream, index = places[min(start + rank, len(places) - 1)]
        row = to_row(stream[index])
        yield row if start + rank < len(places) else unsupervised(row)


def chosen_rows(manifest_sha256: str, task_id: int, available: int, most: int | None) -> list[int]:
    """Numbers of at most `most` of a task's `available` rows, in order: drawn by what the dataset is, not by a run."""
    if most is None or available <= most:
        return list(range(available))
    generator = np.random.default_rng([SUBSET_STREAM, int(manifest_sha256, 16), task_id])
    return sorted(generator.permutation(available)[:most].tolist())


def unsupervised(row: Row) -> Row:
    """The same tokens, none of which counts towards a loss."""
    return replace(row, loss_mask=np.zeros_like(row.loss_mask))
