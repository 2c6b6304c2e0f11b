"""The dataset directory's own files: the list of rejects, and the manifest, written last."""

from __future__ import annotations

from importlib.metadata import version
from typing import TYPE_CHECKING, Any

import orjson

from mft_data.dataset.fingerprints import manifest_bytes
from mft_data.dataset.mds import EXTRA_COLUMNS
from mft_data.errors import DataError

if TYPE_CHECKING:
    from pathlib import Path

FORMAT_VERSION = "1"
# Of a dataset with `features`: a reader that does not know them would misread its rows.
FEATURES_VERSION = "2"
FEATURES = EXTRA_COLUMNS.keys()
MANIFEST = "manifest.json"
REJECTS = "rejects.jsonl"


def producer() -> str:
    """Name and version of this package."""
    return f"mft-data {version('mft-data')}"


def write_manifest(dataset_dir: Path, manifest: dict[str, Any]) -> None:
    """Writes manifest.json, whose presence says that the dataset is complete."""
    version = FEATURES_VERSION if manifest.get("features") else FORMAT_VERSION
    content = {"format_version": version, "producer": producer(), **manifest}
    (dataset_dir / MANIFEST).write_bytes(manifest_bytes(content))


def read_manifest(dataset_dir: Path) -> dict[str, Any]:
    """The manifest of a dataset directory; raises DataError."""
    path = dataset_dir / MANIFEST
    try:
        manifest = orjson.loads(path.read_bytes())
        found = manifest["format_version"]
    except FileNotFoundError as error:
        raise DataError(f'"{dataset_dir}" is not a complete dataset (it has no {MANIFEST})') from error
    except (orjson.JSONDecodeError, KeyError, TypeError) as error:
        raise DataError("the manifest is damaged", where=str(path), fix="build the dataset anew") from error
    if found not in (FORMAT_VERSION, FEATURES_VERSION):
        what = f"format_version {found!r} is neither {FORMAT_VERSION!r} nor {FEATURES_VERSION!r}"
        raise DataError(what, where=str(path), fix=f"{producer()} cannot read it")
    if unknown := sorted(set(manifest.get("features", [])) - FEATURES):
        raise DataError(f"the feature {unknown[0]!a} is unknown", where=str(path), fix=f"{producer()} cannot read it")
    return manifest
