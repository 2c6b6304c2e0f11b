"""What becomes of conversations longer than a row, and of pairs of them."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from mft_data.encoding.encoder import EncodedBatch

if TYPE_CHECKING:
    from collections.abc import Callable

    from mft_data.encoding.template import Stretch


def drop_overlong(batch: EncodedBatch, num_sides: np.ndarray, seq_length: int) -> tuple[EncodedBatch, np.ndarray]:
    """The batch without records of more than `seq_length` tokens, and a boolean per record: kept.

    `num_sides` is 1 for a conversation and 2 for a pair, whose conversations follow each other in the batch.
    """
    is_kept = record_lengths(batch, num_sides) <= seq_length
    return select(batch, np.repeat(is_kept, num_sides), seq_length), is_kept


def truncate_overlong(batch: EncodedBatch, num_sides: np.ndarray, seq_length: int) -> tuple[EncodedBatch, np.ndarray]:
    """The batch with conversations cut after `seq_length` tokens, and a boolean per record: kept.

    A conversation with no supervised token before the cut is not kept. The last span of one that is cut has no EOS.
    A pair is never cut: it would compare answers of which one has no end. It is dropped.
    """
    ends = np.minimum(batch.lengths, seq_length) + starts_of(batch.lengths)
    supervised_before = np.concatenate([[0], np.cumsum(batch.loss_mask, dtype=np.int64)])
    is_learned = supervised_before[ends] > supervised_before[starts_of(batch.lengths)]
    is_kept = np.where(num_sides == 1, is_learned[starts_of(num_sides)], record_lengths(batch, num_sides) <= seq_length)
    return select(batch, np.repeat(is_kept, num_sides), seq_length), is_kept


OVERLONG: dict[str, Callable[[EncodedBatch, np.ndarray, int], tuple[EncodedBatch, np.ndarray]]] = {
    "drop": drop_overlong,
    "truncate": truncate_overlong,
}


def record_lengths(batch: EncodedBatch, num_sides: np.ndarray) -> np.ndarray:
    """The tokens of each record, those of both sides of a pair together: (records,) int64."""
    return np.add.reduceat(batch.lengths, starts_of(num_sides)) if len(num_sides) else batch.lengths


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


def select(batch: EncodedBatch, is_kept: np.ndarray, seq_length: int) -> EncodedBatch:
    """The first `seq_length` tokens of the conversations kept."""
    offsets = np.arange(len(batch.input_ids)) - np.repeat(starts_of(batch.lengths), batch.lengths)
    is_token_kept = np.repeat(is_kept, batch.lengths) & (offsets < seq_length)
    lengths = np.minimum(batch.lengths, seq_length)[is_kept]
    return EncodedBatch(batch.input_ids[is_token_kept], batch.loss_mask[is_token_kept], lengths)


def starts_of(lengths: np.ndarray) -> np.ndarray:
    """The position of each conversation's first token."""
    return np.cumsum(lengths) - lengths
