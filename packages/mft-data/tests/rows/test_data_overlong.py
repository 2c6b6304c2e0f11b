"""Overlong conversations are dropped or cut, and nothing else is."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mft_data.encoding.encoder import EncodedBatch
from mft_data.rows.overlong import OVERLONG

masks = st.lists(st.lists(st.integers(0, 1), min_size=1, max_size=12), min_size=1, max_size=8)


def make_batch(masks):
    """Conversations with the given masks and ids that count up through the batch."""
    flat = [flag for mask in masks for flag in mask]
    return EncodedBatch(np.arange(len(flat), dtype=np.uint16), np.array(flat, np.uint8), np.array([*map(len, masks)]))


def conversations(batch):
    """(ids, mask) of each conversation."""
    borders = np.cumsum(batch.lengths)[:-1]
    parts = zip(np.split(batch.input_ids, borders), np.split(batch.loss_mask, borders), strict=True)
    return [(ids.tolist(), mask.tolist()) for ids, mask in parts] if len(batch.lengths) else []


@given(masks=st.lists(st.tuples(*[st.lists(st.integers(0, 1), min_size=1, max_size=5)] * 2), min_size=1, max_size=8))
@pytest.mark.parametrize("overlong", ["drop", "truncate"])
def test_a_pair_is_kept_whole_or_not_at_all(overlong, masks):
    batch = make_batch([mask for pair in masks for mask in pair])
    fitted, is_kept = OVERLONG[overlong](batch, np.full(len(masks), 2), 6)
    assert is_kept.tolist() == [len(chosen) + len(rejected) <= 6 for chosen, rejected in masks]
    expected = [part for part, keep in zip(conversations(batch), np.repeat(is_kept, 2), strict=True) if keep]
    assert conversations(fitted) == expected


@given(masks=masks)
@pytest.mark.parametrize("overlong", ["drop", "truncate"])
def test_what_is_left_is_what_a_loop_over_conversations_leaves(overlong, masks):
    batch = make_batch(masks)
    expected, expected_kept = [], []
    for ids, mask in conversations(batch):
        keep = len(ids) <= 6 if overlong == "drop" else any(mask[:6])
        expected_kept.append(keep)
        if keep:
            expected.append((ids[:6], mask[:6]))
    fitted, is_kept = OVERLONG[overlong](batch, np.ones(len(masks), int), 6)
    assert conversations(fitted) == expected
    assert is_kept.tolist() == expected_kept
    assert fitted.input_ids.dtype == np.uint16
    assert fitted.loss_mask.dtype == np.uint8
