"""What has to hold for every row of a dataset."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from mft_data.dataset.mds import CHOSEN, REJECTED, SEGMENT_SIDES, SEGMENT_WEIGHTS
from mft_data.dataset.shard_columns import read_arrays, read_ints

if TYPE_CHECKING:
    from collections.abc import Iterator

    from mft_data.dataset.shard_columns import Arrays, Shard


@dataclass(frozen=True, slots=True)
class RowLimits:
    """What the manifest promises of the rows of one task."""

    seq_length: int
    max_token_id: int
    task_id: int


@dataclass(frozen=True, slots=True)
class Rows:
    """The rows of one shard, by column."""

    input_ids: Arrays
    loss_mask: Arrays
    segment_lengths: Arrays
    task_ids: np.ndarray  # (rows,) int64
    segment_sides: Arrays | None  # where the dataset has them, as the next
    segment_weights: Arrays | None

    @property
    def counts(self) -> dict[str, int]:
        """What the rows hold, under the names that the manifest uses."""
        num_pairs = 0 if self.segment_sides is None else int((self.segment_sides.values == REJECTED).sum())
        return {
            "conversations": len(self.segment_lengths.values) - num_pairs,
            "rows": len(self.task_ids),
            "tokens": len(self.input_ids.values),
            "supervised_tokens": int(np.count_nonzero(self.loss_mask.values)),
            "pairs": num_pairs,
        }


def read_rows(shard: Shard) -> Rows:
    """The rows of a shard; raises ShardError."""
    input_ids, loss_mask, segment_lengths = (
        read_arrays(shard, name) for name in ("input_ids", "loss_mask", "segment_lengths")
    )
    sides, weights = (
        read_arrays(shard, name) if name in shard.encodings else None for name in (SEGMENT_SIDES, SEGMENT_WEIGHTS)
    )
    return Rows(input_ids, loss_mask, segment_lengths, read_ints(shard, "task_id"), sides, weights)


def broken_rules(rows: Rows, limits: RowLimits) -> Iterator[tuple[str, np.ndarray]]:
    """Each rule that some rows break, in words that follow "row 3", and these rows by position."""
    num_tokens = rows.input_ids.lengths
    checks = (
        ("has no tokens", num_tokens == 0),
        (f"has more than {limits.seq_length} tokens", num_tokens > limits.seq_length),
        ("has a loss_mask of another length than input_ids", rows.loss_mask.lengths != num_tokens),
        (f"has another task_id than {limits.task_id}", rows.task_ids != limits.task_id),
        ("has segment_lengths that do not sum to its tokens", segment_sums(rows.segment_lengths) != num_tokens),
    )
    for words, is_broken in checks:
        if is_broken.any():
            yield words, np.flatnonzero(is_broken)
    value_checks = (
        ("has an empty segment", rows.segment_lengths, rows.segment_lengths.values == 0),
        (f"has ids above {limits.max_token_id}", rows.input_ids, rows.input_ids.values > limits.max_token_id),
        ("has a loss_mask with other values than 0 and 1", rows.loss_mask, rows.loss_mask.values > 1),
    )
    for words, arrays, is_broken in value_checks:
        if is_broken.any():
            yield words, arrays.rows_of(np.flatnonzero(is_broken))
    if rows.segment_sides is not None:
        yield from broken_sides(rows.segment_sides, rows.segment_lengths)
    if rows.segment_weights is not None:
        yield from broken_weights(rows.segment_weights, rows.segment_lengths)
    if (segment_sums(rows.segment_lengths) == rows.loss_mask.lengths).all():
        ends = np.cumsum(rows.segment_lengths.values, dtype=np.int64)
        # An empty segment, reported above, may begin past the last token.
        firsts = (ends - rows.segment_lengths.values)[rows.segment_lengths.values > 0]
        supervised_firsts = firsts[rows.loss_mask.values[firsts] > 0]
        if len(supervised_firsts):
            yield "has a segment whose first token is supervised", rows.loss_mask.rows_of(supervised_firsts)


def broken_sides(sides: Arrays, segment_lengths: Arrays) -> Iterator[tuple[str, np.ndarray]]:
    """Each rule on pairs that some rows break, and these rows."""
    is_other = sides.lengths != segment_lengths.lengths
    if is_other.any():
        yield "has another number of sides than of segments", np.flatnonzero(is_other)
    values = sides.values.astype(np.int64)
    # A rejected one comes right after a chosen one of its row, and nothing else does.
    before = np.concatenate([[0], values[:-1]]) if len(values) else values
    before[sides.bounds[:-1][sides.lengths > 0]] = 0
    is_broken = (values > REJECTED) | ((values == REJECTED) != (before == CHOSEN))
    lasts = sides.bounds[1:][sides.lengths > 0] - 1
    is_broken[lasts] |= values[lasts] == CHOSEN
    if is_broken.any():
        yield "has a side without its other one", np.unique(sides.rows_of(np.flatnonzero(is_broken)))


def broken_weights(weights: Arrays, segment_lengths: Arrays) -> Iterator[tuple[str, np.ndarray]]:
    """Each rule on weights that some rows break, and these rows."""
    is_other = weights.lengths != segment_lengths.lengths
    if is_other.any():
        yield "has another number of weights than of segments", np.flatnonzero(is_other)
    is_no_weight = ~(np.isfinite(weights.values) & (weights.values > 0))
    if is_no_weight.any():
        yield "has a weight that is no positive number", weights.rows_of(np.flatnonzero(is_no_weight))


def segment_sums(segment_lengths: Arrays) -> np.ndarray:
    """The sum of each row's segment lengths: (rows,) int64."""
    sums = np.concatenate([[0], np.cumsum(segment_lengths.values, dtype=np.int64)])
    return sums[segment_lengths.bounds[1:]] - sums[segment_lengths.bounds[:-1]]
