"""The conversations of a dataset's streams, some rows at a time, as arrays."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from mft_data.audit.findings import Place
from mft_data.dataset.mds import REJECTED
from mft_data.dataset.row_rules import read_rows
from mft_data.dataset.shard_columns import ShardError, parse_index, parse_shard
from mft_data.errors import DataError
from mft_data.rows.split import SPLITS

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


@dataclass(frozen=True, slots=True)
class Segments:
    """The conversations of one shard, end to end."""

    task: str
    split: str
    input_ids: np.ndarray  # (tokens,)
    loss_mask: np.ndarray  # (tokens,) uint8
    bounds: np.ndarray  # (conversations + 1,) int64: where each begins, and the end
    rows: np.ndarray  # (conversations,) int64: the row of each
    numbers: np.ndarray  # (conversations,) int64: its number in the row, from 1
    is_rejected: np.ndarray  # (conversations,) bool: the rejected side of a pair

    def place(self, position: int) -> Place:
        """Where a conversation lies."""
        return Place(self.task, self.split, int(self.rows[position]), int(self.numbers[position]))


def read_segments(dataset_dir: Path, manifest: dict[str, Any]) -> Iterator[Segments]:
    """The conversations of all tasks and splits, a shard at a time; raises DataError for a damaged one."""
    for task in manifest["tasks"]:
        for split in SPLITS:
            if not task["splits"][split]["rows"]:
                continue
            stream_dir = dataset_dir / split / task["name"]
            first_row = 0
            try:
                for entry in parse_index((stream_dir / "index.json").read_bytes()):
                    segments = shard_segments(stream_dir / entry.name, task["name"], split, first_row)
                    first_row += entry.num_rows
                    yield segments
            except ShardError as error:
                what = f"the rows are damaged ({error})"
                raise DataError(what, where=str(stream_dir), fix="see what else `mft-data verify` finds") from error


def shard_segments(path: Path, task: str, split: str, first_row: int) -> Segments:
    """The conversations of one shard; raises ShardError."""
    rows = read_rows(parse_shard(path.read_bytes()))
    lengths = rows.segment_lengths.values.astype(np.int64)
    if lengths.sum() != len(rows.input_ids.values) or len(rows.loss_mask.values) != len(rows.input_ids.values):
        raise ShardError("the lengths of the conversations are not those of the rows")
    per_row = rows.segment_lengths.lengths
    firsts = np.cumsum(per_row) - per_row
    sides = rows.segment_sides
    return Segments(
        task=task,
        split=split,
        input_ids=rows.input_ids.values,
        loss_mask=rows.loss_mask.values,
        bounds=np.concatenate([[0], np.cumsum(lengths)]),
        rows=first_row + np.repeat(np.arange(len(per_row)), per_row),
        numbers=np.arange(len(lengths)) - np.repeat(firsts, per_row) + 1,
        is_rejected=np.zeros(len(lengths), bool) if sides is None else sides.values == REJECTED,
    )
