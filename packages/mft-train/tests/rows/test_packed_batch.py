import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from mft_train.rows.packed_batch import Row, pack_rows


def test_batch_of_a_worked_example():
    first = Row(np.array([5, 6, 7, 8, 9]), np.array([0, 1, 1, 1, 1]), np.array([3, 2]), 1)
    second = Row(np.array([3, 4]), np.array([1, 0]), np.array([2]), 0)
    batch = pack_rows([first, second])
    assert batch.input_ids.tolist() == [[5, 6, 7, 8, 9, 3, 4]]
    assert batch.position_ids.tolist() == [[0, 1, 2, 0, 1, 0, 1]]
    assert batch.cu_seqlens.tolist() == [0, 3, 5, 7]
    assert batch.max_seqlen == 3
    # Tokens 8 and 3 begin a conversation: nothing predicts them.
    assert batch.labels.tolist() == [6, 7, 9]
    assert batch.predict_positions.tolist() == [0, 1, 3]
    assert batch.token_segments.tolist() == [0, 0, 1]
    assert batch.segment_tasks.tolist() == [1, 1, 0]
    assert batch.segment_tokens.tolist() == [2, 1, 0]


@st.composite
def rows(draw):
    lengths = draw(st.lists(st.integers(1, 6), min_size=1, max_size=5))
    total = sum(lengths)
    ids = draw(st.lists(st.integers(0, 99), min_size=total, max_size=total))
    mask = draw(st.lists(st.integers(0, 1), min_size=total, max_size=total))
    return Row(
        np.array(ids, np.uint16), np.array(mask, np.uint8), np.array(lengths, np.uint32), draw(st.integers(0, 2))
    )


@given(st.lists(rows(), min_size=1, max_size=4))
def test_every_supervised_token_but_the_first_of_a_conversation_is_a_label(rows):
    batch = pack_rows(rows)
    expected = []
    for row in rows:
        start = 0
        for length in row.segment_lengths.tolist():
            ids, mask = row.input_ids[start : start + length], row.loss_mask[start : start + length]
            expected += ids[1:][mask[1:] == 1].tolist()
            start += length
    assert batch.labels.tolist() == expected
    assert batch.segment_tokens.sum() == len(expected)
    assert (batch.input_ids[0][batch.predict_positions + 1] == batch.labels).all()
    borders = batch.cu_seqlens.tolist()
    assert borders[-1] == batch.input_ids.numel()
    assert (batch.position_ids[0][borders[:-1]] == 0).all()


def test_a_batch_without_supervised_tokens_still_asks_for_one_position():
    batch = pack_rows([Row(np.array([1, 2]), np.array([0, 0]), np.array([2]), 0)])
    assert batch.labels.numel() == 0
    assert batch.forward_keywords()["logits_to_keep"].tolist() == [0]
