from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mft_train.balancing.probe import Probe, draw_rows, measured_tasks
from mft_train.rows.dataset_dir import open_dataset


@given(st.integers(0, 9), st.integers(0, 3), st.integers(1, 30), st.integers(1, 9))
def test_a_draw_has_different_rows_and_repeats_itself(seed, task_id, available, wanted):
    drawn = draw_rows(seed, task_id, available, wanted)
    assert len(drawn) == len(set(drawn)) == min(wanted, available)
    assert all(0 <= row < available for row in drawn)
    assert draw_rows(seed, task_id, available, wanted) == drawn


def test_a_draw_from_a_great_many_rows_is_made():
    # A permutation of so many numbers would fit into no memory.
    assert len(draw_rows(0, 0, 10**15, 8)) == 8


def test_seeds_and_tasks_have_draws_of_their_own_that_reach_every_row():
    assert {row for seed in range(100) for row in draw_rows(seed, 0, 10, 2)} == set(range(10))
    assert len({tuple(draw_rows(0, task_id, 1000, 8)) for task_id in range(20)}) == 20


@given(st.integers(1, 12), st.one_of(st.none(), st.integers(1, 12)))
def test_tasks_are_measured_all_at_first_then_in_turn(num_tasks, most):
    everyone = list(range(num_tasks))
    assert measured_tasks(0, num_tasks, most) == everyone
    if most is None or most >= num_tasks:
        assert measured_tasks(7, num_tasks, most) == everyone
        return
    turns = [measured_tasks(update, num_tasks, most) for update in range(1, num_tasks + 1)]
    assert all(len(set(turn)) == most for turn in turns)
    assert Counter(task for turn in turns for task in turn) == dict.fromkeys(everyone, most)
    assert turns == [measured_tasks(update + num_tasks, num_tasks, most) for update in range(1, num_tasks + 1)]


@pytest.mark.parametrize("world_size", [2, 3])
def test_ranks_share_one_draw(tiny_dataset, world_size):
    dataset = open_dataset(str(tiny_dataset))
    probe = Probe(dataset, dataset.trained_tasks, 3, seed=0)
    whole = [row.input_ids.tobytes() for row in probe.rows(7, 0, 1)]
    ranks = [probe.rows(7, rank, world_size) for rank in range(world_size)]
    assert sorted(row.input_ids.tobytes() for rows in ranks for row in rows if row.loss_mask.any()) == sorted(whole)
    assert len({len(rows) for rows in ranks}) == 1, "every rank makes as many forward passes"
    assert [row.task_id for row in probe.rows(7, 0, 1)] == [0, 0, 0, 1, 1]


def test_every_update_measures_the_same_rows(tiny_dataset):
    dataset = open_dataset(str(tiny_dataset))
    probe = Probe(dataset, dataset.trained_tasks, 3, seed=0, most_tasks=1)
    first, *later = [[row.input_ids.tobytes() for row in probe.rows(update, 0, 1)] for update in range(5)]
    assert later[0] + later[1] == first
    assert later[2:] == later[:2]
