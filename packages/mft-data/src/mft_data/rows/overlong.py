"""What becomes of conversations longer than a row."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from mft_data.encoding.encoder import EncodedBatch

if TYPE_CHECKING:
    from collections.abc import Callable

    from mft_data.encoding.template import Stretch


def drop_overlong(batch: EncodedBatch, seq_length: int) -> tuple[EncodedBatch, np.ndarray]:
    """The batch without conversations of more than `seq_length` tokens, and a boolean per conversation: kept."""
    return select(batch, batch.lengths <= seq_length, seq_length)


def truncate_overlong(batch: EncodedBatch, seq_length: int) -> tuple[EncodedBatch, np.ndarray]:
    """The batch with conversations cut after `seq_length` tokens, and a boolean per conversation: kept.

    A conversation with no supervised token before the cut is not kept. The last span of one that is cut has no EOS.
    """
    ends = np.minimum(batch.lengths, seq_length) + starts_of(batch.lengths)
    supervised_before = np.concatenate([[0], np.cumsum(batch.loss_mask, dtype=np.int64)])
    is_kept = supervised_before[ends] > supervised_before[starts_of(batch.lengths)]
    return select(batch, is_kept, seq_length)


OVERLONG: dict[str, Callable[[EncodedBatch, int], tuple[EncodedBatch, np.ndarray]]] = {
    "drop": drop_overlong,
    "truncate": truncate_overlong,
}


def longest_text(seq_length: int, longest_token: int) -> int:
    """The most characters of a text that can fit a row; longer ones are overlong without being encoded."""
    return seq_length * longest_token


def shortened(stretches: list[Stretch], limit: int) -> list[Stretch]:
    """The first 2 * `limit` characters of a rendered conversation: more than a row of it holds."""
    kept, room = [], 2 * limit
    for stretch in stretches:
        kept.append(stretch._replace(text=stretch.text[:room]))
        room -= len(stretch.text)
        if room <= 0:
            break
    return kept


def select(batch: EncodedBatch, is_kept: np.ndarray, seq_length: int) -> tuple[EncodedBatch, np.ndarray]:
    """The first `seq_length` tokens of the conversations kept."""
    offsets = np.arange(len(batch.input_ids)) - np.repeat(starts_of(batch.lengths), batch.lengths)
    is_token_kept = np.repeat(is_kept, batch.lengths) & (offsets < seq_length)
    lengths = np.minimum(batch.lengths, seq_length)[is_kept]
    return EncodedBatch(batch.input_ids[is_token_kept], batch.loss_mask[is_token_kept], lengths), is_kept


def starts_of(lengths: np.ndarray) -> np.ndarray:
    """The position of each conversation's first token."""
    return np.cumsum(lengths) - lengths
