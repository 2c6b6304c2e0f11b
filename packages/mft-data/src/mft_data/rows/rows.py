"""Encoded conversations gathered into the samples of MDS rows."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from mft_data.dataset.mds import encode_sample

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from mft_data.encoding.encoder import EncodedBatch


def encode_rows(encoded: EncodedBatch, rows: Sequence[Sequence[int]], task_id: int) -> Iterator[bytes]:
    """The MDS sample of each row, a row being the positions of its conversations in `encoded`."""
    if not rows:
        return
    order = np.fromiter((position for row in rows for position in row), np.int64)
    lengths = encoded.lengths[order]
    starts = np.cumsum(encoded.lengths) - encoded.lengths
    ends = np.cumsum(lengths)
    gather = np.arange(ends[-1]) + np.repeat(starts[order] - (ends - lengths), lengths)
    input_ids, loss_mask = encoded.input_ids[gather], encoded.loss_mask[gather]
    segment_lengths = lengths.astype(np.uint32)
    first = token = 0
    for row in rows:
        last = first + len(row)
        end = int(ends[last - 1])
        yield encode_sample(input_ids[token:end], loss_mask[token:end], segment_lengths[first:last], task_id)
        first, token = last, end
