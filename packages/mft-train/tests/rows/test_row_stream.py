import pytest

from mft_train.rows.dataset_dir import open_dataset
from mft_train.rows.row_stream import RowStream, StreamPosition


@pytest.fixture(autouse=True)
def one_rank(monkeypatch):
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "1")


def keys(rows):
    return [row.input_ids.tobytes() for row in rows]


def test_an_epoch_visits_every_row_once_and_a_position_continues_it(tiny_dataset):
    dataset = open_dataset(str(tiny_dataset))
    stream = RowStream(dataset, {}, 4, 0, 0, 1)
    assert stream.epoch_size == 29
    assert stream.steps_per_epoch == 8
    steps = stream.steps(StreamPosition())
    taken = [next(steps) for _ in range(12)]
    epoch = [key for step in taken[:8] for key in keys(step.rows)]
    assert len(epoch) == len(set(epoch)) == 29
    assert taken[7].next_position == StreamPosition(1, 0)
    assert keys(taken[8].rows) != keys(taken[0].rows)
    del stream
    for index in (2, 7, 9):
        resumed = RowStream(dataset, {}, 4, 0, 0, 1).steps(taken[index].next_position)
        assert keys(next(resumed).rows) == keys(taken[index + 1].rows)


def test_a_mixture_draws_rows_by_proportion(tiny_dataset):
    stream = RowStream(open_dataset(str(tiny_dataset)), {"large": 0.5, "small": 0.5}, 4, 0, 0, 1)
    steps = stream.steps(StreamPosition())
    drawn = [row.task_id for _ in range(stream.steps_per_epoch) for row in next(steps).rows]
    assert abs(drawn.count(0) - drawn.count(1)) <= 1
