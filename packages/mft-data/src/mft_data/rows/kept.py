"""Encoded records that are kept: conversations, and pairs of a chosen and a rejected one."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from mft_data.dataset.mds import ALONE, CHOSEN, REJECTED
from mft_data.encoding.encoder import EncodedBatch
from mft_data.rows.overlong import record_lengths, starts_of


@dataclass(frozen=True, slots=True)
class Kept:
    """Encoded records that go into rows: conversations, and pairs, of which the two follow each other in `encoded`."""

    encoded: EncodedBatch
    num_sides: np.ndarray  # (records,) int64: 1, or 2 of a pair
    hashes: np.ndarray  # (records,) uint64
    weights: np.ndarray  # (records,) float32

    @property
    def lengths(self) -> np.ndarray:
        """The tokens of each record: (records,) int64."""
        return record_lengths(self.encoded, self.num_sides)

    @property
    def sides(self) -> np.ndarray:
        """What each encoded conversation is: (conversations,) uint8."""
        sides = np.full(len(self.encoded.lengths), ALONE, np.uint8)
        firsts = starts_of(self.num_sides)[self.num_sides == len((CHOSEN, REJECTED))]
        sides[firsts], sides[firsts + 1] = CHOSEN, REJECTED
        return sides


def joined(batches: list[Kept]) -> Kept:
    """The records of all batches."""
    encoded = [batch.encoded for batch in batches]
    return Kept(
        EncodedBatch(
            np.concatenate([batch.input_ids for batch in encoded]),
            np.concatenate([batch.loss_mask for batch in encoded]),
            np.concatenate([batch.lengths for batch in encoded]),
        ),
        np.concatenate([batch.num_sides for batch in batches]),
        np.concatenate([batch.hashes for batch in batches]),
        np.concatenate([batch.weights for batch in batches]),
    )


def segments_of(rows: list[list[int]], num_sides: np.ndarray) -> list[list[int]]:
    """Rows of encoded conversations from rows of records."""
    firsts, numbers = starts_of(num_sides).tolist(), num_sides.tolist()
    return [
        [segment for record in row for segment in range(firsts[record], firsts[record] + numbers[record])]
        for row in rows
    ]
