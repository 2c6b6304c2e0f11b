"""The dataset directory on disk: rows in MDS streams, the list of rejects, the manifest."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

import numpy as np
import orjson

from mft_data.errors import DataError

if TYPE_CHECKING:
    from pathlib import Path

    from mft_data.encoder import EncodedBatch
    from mft_data.packing import Rows
    from mft_data.records import Reject

FORMAT_VERSION = "1"
MANIFEST = "manifest.json"


@dataclass(frozen=True, slots=True)
class SplitCounts:
    """What one task has in one split."""

    conversations: int
    rows: int
    tokens: int
    supervised_tokens: int


def producer() -> str:
    """Name and version of this package."""
    return f"mft-data {version('mft-data')}"


def mds_columns(ids_dtype: str) -> dict[str, str]:
    """Column names and MDS encodings of a row."""
    return {
        "input_ids": f"ndarray:{ids_dtype}",
        "loss_mask": "ndarray:uint8",
        "segment_lengths": "ndarray:uint32",
        "task_id": "int",
    }


def write_rows(
    stream_dir: Path, columns: dict[str, str], task_id: int, encoded: EncodedBatch, rows: Rows
) -> SplitCounts:
    """Writes one MDS stream, a sample per row of positions in `encoded`; without rows writes nothing."""
    from streaming import MDSWriter

    num_tokens = num_supervised = 0
    ends = np.cumsum(encoded.lengths)
    starts = ends - encoded.lengths
    if rows:
        with MDSWriter(columns=columns, out=str(stream_dir), hashes=["sha256"]) as writer:
            for row in rows:
                spans = [slice(starts[position], ends[position]) for position in row]
                loss_mask = np.concatenate([encoded.loss_mask[span] for span in spans])
                num_tokens += len(loss_mask)
                num_supervised += int(loss_mask.sum())
                writer.write(
                    {
                        "input_ids": np.concatenate([encoded.input_ids[span] for span in spans]),
                        "loss_mask": loss_mask,
                        "segment_lengths": encoded.lengths[row].astype(np.uint32),
                        "task_id": task_id,
                    }
                )
    return SplitCounts(sum(map(len, rows)), len(rows), num_tokens, num_supervised)


def write_rejects(dataset_dir: Path, rejects: list[Reject]) -> None:
    """Writes rejects.jsonl, empty if nothing was refused."""
    lines = [orjson.dumps(asdict(reject), option=orjson.OPT_APPEND_NEWLINE) for reject in rejects]
    (dataset_dir / "rejects.jsonl").write_bytes(b"".join(lines))


def write_manifest(dataset_dir: Path, manifest: dict[str, Any]) -> None:
    """Writes manifest.json, whose presence says that the dataset is complete."""
    options = orjson.OPT_INDENT_2 | orjson.OPT_APPEND_NEWLINE
    content = {"format_version": FORMAT_VERSION, "producer": producer(), **manifest}
    (dataset_dir / MANIFEST).write_bytes(orjson.dumps(content, option=options))


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
    if found != FORMAT_VERSION:
        raise DataError(
            f"format_version {found!r} is not {FORMAT_VERSION!r}", where=str(path), fix=f"{producer()} cannot read it"
        )
    return manifest
