"""What a run was made from: its resolved config, and the manifest of its dataset if that can still be read."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import orjson

from mft_train.config.config_file import parse_yaml
from mft_train.errors import TrainError

MOST_SOURCES = 20  # of one task; the manifest has them all
SETTINGS = ("producer", "seq_length", "packing", "overlong", "validation_fraction", "dedup", "template", "seed")
FINGERPRINTS = ("template_sha256", "tokenizer_sha256", "content_sha256")


@dataclass(frozen=True, slots=True)
class Source:
    """One file that a task was built from."""

    file: str
    size_bytes: int
    sha256: str


@dataclass(frozen=True, slots=True)
class TaskData:
    """What the manifest says of one task; `splits` has (rows, tokens, supervised tokens) of train and validation.

    `num_read` and `num_used` count conversations: those in the sources, and those in the splits.
    """

    name: str
    sources: tuple[Source, ...]
    num_read: int
    num_used: int
    splits: dict[str, tuple[int, int, int]]

    @property
    def counts(self) -> list[int]:
        """Files and bytes of the sources, conversations read and not used, then both splits' rows and tokens."""
        sizes = [source.size_bytes for source in self.sources]
        unused = self.num_read - self.num_used
        return [len(sizes), sum(sizes), self.num_read, unused, *self.splits["train"], *self.splits["validation"]]


@dataclass(frozen=True, slots=True)
class Manifest:
    """What the manifest of a dataset says, and the sha256 of its bytes."""

    settings: dict[str, Any]
    fingerprints: dict[str, str]
    tasks: tuple[TaskData, ...]


def read_run_config(run_dir: Path) -> dict[str, Any]:
    """The resolved config of a run, as its file says; raises TrainError."""
    path = run_dir / "config.yaml"
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError as error:
        raise TrainError("there is no config.yaml", where=str(run_dir), fix="is it the output of a run?") from error
    except UnicodeDecodeError as error:
        raise TrainError("the config is not UTF-8", where=str(path)) from error
    return parse_yaml(text, str(path))[0]


def read_manifest(location: str) -> Manifest | str:
    """The manifest of the dataset, or why there is none to show: a run outlives its dataset."""
    if "://" in location:
        return "It is remote, and a report reads local files only."
    path = Path(location) / "manifest.json"
    try:
        content = path.read_bytes()
        manifest = orjson.loads(content)
        if manifest["format_version"] not in ("1", "2"):
            return f"The format_version of its manifest is {manifest['format_version']}, not 1 or 2."
        return Manifest(
            settings={key: manifest[key] for key in SETTINGS if key in manifest},
            fingerprints={
                "manifest.json": hashlib.sha256(content).hexdigest(),
                **{key: manifest[key] for key in FINGERPRINTS if key in manifest},
            },
            tasks=tuple(task_data(entry) for entry in manifest["tasks"]),
        )
    except OSError:
        return (
            "Its manifest cannot be read from here: it was moved or deleted, or the path is relative to another folder."
        )
    except (orjson.JSONDecodeError, KeyError, TypeError, AttributeError):
        return "Its manifest.json is not one that this version can read."


def task_data(entry: dict[str, Any]) -> TaskData:
    """One entry of the manifest's tasks; raises KeyError, TypeError or AttributeError."""
    splits = {
        name: (int(split["rows"]), int(split["tokens"]), int(split["supervised_tokens"]))
        for name in ("train", "validation")
        for split in (entry["splits"][name],)
    }
    sources = tuple(
        Source(str(source["file"]), int(source["size_bytes"]), str(source["sha256"])) for source in entry["sources"]
    )
    num_used = sum(entry["splits"][name]["conversations"] for name in splits)
    return TaskData(str(entry["name"]), sources, entry["conversations"]["read"], num_used, splits)
