"""Packing puts every conversation in exactly one row that can hold it, the same way every time."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mft_data.rows.packing import PACKINGS, pack

lengths_of_64 = st.lists(st.integers(1, 64), max_size=80)


@given(lengths=lengths_of_64, packing=st.sampled_from(sorted(PACKINGS)), key=st.text(max_size=3))
def test_no_conversation_is_lost_or_repeated_and_no_row_overflows(lengths, packing, key):
    rows = pack(lengths, 64, packing, key)
    assert sorted(position for row in rows for position in row) == list(range(len(lengths)))
    assert all(sum(lengths[position] for position in row) <= 64 for row in rows)
    assert all(rows)


@given(lengths=lengths_of_64, packing=st.sampled_from(sorted(PACKINGS)))
def test_rows_follow_from_the_key(lengths, packing):
    assert pack(lengths, 64, packing, "a") == pack(lengths, 64, packing, "a")


def test_another_key_gives_other_rows():
    lengths = [10] * 50
    assert pack(lengths, 64, "best-fit", "a") != pack(lengths, 64, "best-fit", "b")


@settings(max_examples=50)
@given(lengths=lengths_of_64)
def test_best_fit_leaves_no_two_rows_that_fit_together(lengths):
    sums = sorted(sum(lengths[position] for position in row) for row in pack(lengths, 64, "best-fit", ""))
    assert len(sums) < 2 or sums[0] + sums[1] > 64


@given(lengths=lengths_of_64)
def test_best_fit_is_the_plain_algorithm(lengths):
    rows: list[int] = []
    for length in sorted(lengths, reverse=True):
        fitting = [position for position, filled in enumerate(rows) if filled + length <= 64]
        if fitting:
            rows[max(fitting, key=rows.__getitem__)] += length
        else:
            rows.append(length)
    packed = pack(lengths, 64, "best-fit", "")
    assert sorted(sum(lengths[position] for position in row) for row in packed) == sorted(rows)


def test_the_worked_example_by_hand():
    # 7 opens a row; 6 opens another, which 4 fills; 3 fills the first; 2 opens the third.
    lengths = [4, 7, 2, 3, 6]
    rows = pack(lengths, 10, "best-fit", "")
    assert sorted(sorted(lengths[position] for position in row) for row in rows) == [[2], [3, 7], [4, 6]]


@pytest.mark.parametrize("packing", sorted(PACKINGS))
def test_a_stream_is_not_sorted_by_length(packing):
    lengths = list(range(64, 32, -1))  # no two fit in a row
    packed = [lengths[position] for (position,) in pack(lengths, 64, packing, "")]
    assert packed != lengths
    assert sorted(packed, reverse=True) == lengths


def test_none_gives_every_conversation_its_row():
    assert sorted(pack([5, 5, 5], 64, "none", "")) == [[0], [1], [2]]
