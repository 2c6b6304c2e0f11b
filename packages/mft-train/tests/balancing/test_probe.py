import pytest
from hypothesis import given
from hypothesis import strategies as st

from mft_train.balancing.probe import Probe, draw_rows
from mft_train.rows.dataset_dir import open_dataset


@given(st.integers(0, 9), st.integers(0, 99), st.integers(0, 3), st.integers(1, 30), st.integers(1, 9))
def test_a_draw_has_different_rows_and_repeats_itself(seed, draw, task_id, available, wanted):
    drawn = draw_rows(seed, draw, task_id, available, wanted)
    assert len(drawn) == len(set(drawn)) == min(wanted, available)
    assert all(0 <= row < available for row in drawn)
    assert draw_rows(seed, draw, task_id, available, wanted) == drawn


def test_draws_differ_by_step_and_reach_every_row():
    assert {row for draw in range(100) for row in draw_rows(0, draw, 0, 10, 2)} == set(range(10))


@pytest.mark.parametrize("world_size", [2, 3])
def test_ranks_share_one_draw(tiny_dataset, world_size):
    dataset = open_dataset(str(tiny_dataset))
    probe = Probe(dataset, dataset.trained_tasks, 3, seed=0)
    whole = [row.input_ids.tobytes() for row in probe.rows(7, 0, 1)]
    ranks = [probe.rows(7, rank, world_size) for rank in range(world_size)]
    assert sorted(row.input_ids.tobytes() for rows in ranks for row in rows if row.loss_mask.any()) == sorted(whole)
    assert len({len(rows) for rows in ranks}) == 1, "every rank makes as many forward passes"
    assert [row.task_id for row in probe.rows(7, 0, 1)] == [0, 0, 0, 1, 1]
