"""Expected shares against counted ones: batches drawn by the stream itself, and formulas by hand."""

from collections import Counter
from itertools import combinations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mft_train.config.config import RunConfig
from mft_train.planning.task_shares import batch_shares, task_shares, to_lines, warning
from mft_train.rows.dataset_dir import open_dataset
from mft_train.rows.row_stream import RowStream, StreamPosition


@pytest.fixture(autouse=True)
def one_rank(monkeypatch):
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "1")


def config_of(**values) -> RunConfig:
    return RunConfig(**{"model": "base", "dataset": "dataset", "output": "run", "max_steps": 1} | values)


@pytest.mark.parametrize("weights", [(1.0, 1.0, 1.0), (1.0, 3.0, 0.5)])
def test_shares_of_batches_are_those_of_all_batches_that_there_are(weights):
    drawn, batch_rows = (5, 3, 1), 2
    rows = [task for task, number in enumerate(drawn) for _ in range(number)]
    found = np.zeros(3)
    batches = [set(batch) for batch in combinations(rows, batch_rows)]
    for batch in batches:
        for task in batch:
            found[task] += weights[task] / sum(weights[other] for other in batch) / len(batches)
    shares = batch_shares(np.array(drawn, dtype=float), np.array(weights), batch_rows, seed=0)
    assert shares == pytest.approx(found, abs=0.01)


@given(st.lists(st.integers(1, 500), min_size=1, max_size=40), st.integers(1, 64))
@settings(max_examples=25, deadline=None)
def test_shares_sum_to_one_and_grow_with_the_rows(drawn, batch_rows):
    shares = batch_shares(np.array(drawn, dtype=float), np.ones(len(drawn)), batch_rows, seed=0)
    assert shares.sum() == pytest.approx(1)
    assert shares[int(np.argmax(drawn))] >= shares.max() - 0.02


def test_a_run_has_the_shares_that_are_expected(tiny_dataset):
    dataset = open_dataset(str(tiny_dataset))
    expected = task_shares(dataset, config_of(global_batch_size=4), 1)
    assert [share.task for share in expected] == ["large", "small"]
    totals, steps = Counter(), 0
    for seed in range(12):
        stream = RowStream(dataset, {}, 4, seed, 0, 1)
        taken = stream.steps(StreamPosition())
        for _ in range(stream.steps_per_epoch - 1):  # but the last, which is smaller
            present = {row.task_id for row in next(taken).rows if row.loss_mask.any()}
            steps += 1
            for task in present:
                totals[task] += 1 / len(present)
        del stream, taken
    assert totals[1] / steps == pytest.approx(expected[1].gradient, abs=0.06)
    assert expected[0].rows == pytest.approx(23 / 29)


def test_figures_of_each_reduction(tiny_dataset):
    dataset = open_dataset(str(tiny_dataset))

    def shares(**loss):
        return task_shares(dataset, config_of(global_batch_size=1, max_steps=58, loss=loss), 58)

    by_tokens, by_samples = shares(reduction="token_mean"), shares(reduction="sample_mean")
    assert [share.gradient for share in by_tokens] == [share.supervised_tokens for share in by_tokens]
    conversations = [task.train_conversations for task in dataset.tasks]
    assert by_samples[0].gradient == pytest.approx(conversations[0] / sum(conversations))
    assert {share.asked for share in by_tokens} == {None}
    # A batch of one row holds one task, whatever its weight: shares are those of the rows.
    alone = shares(task_weights={"small": 9.0})
    assert alone[1].asked == pytest.approx(0.9)
    assert alone[1].gradient == pytest.approx(6 / 29, abs=0.01)
    assert [share.gradient for share in shares(task_counts="expected")] == [0.5, 0.5]
    assert [share.epochs for share in alone] == [2.0, 2.0]


def test_a_share_of_less_than_a_third_is_told(tiny_dataset):
    dataset = open_dataset(str(tiny_dataset))
    weights = {"task_weights": {"small": 9.0}}
    line = warning(task_shares(dataset, config_of(global_batch_size=1, loss=weights), 1))
    assert line.startswith('task "small" is to get about 2')
    assert "its weight asks for 90.0%: most batches hold none of its rows" in line
    assert warning(task_shares(dataset, config_of(global_batch_size=24, loss=weights), 1)) is None
    expected = weights | {"task_counts": "expected"}
    assert warning(task_shares(dataset, config_of(global_batch_size=1, loss=expected), 1)) is None


def test_a_long_table_is_cut(tiny_dataset):
    shares = task_shares(open_dataset(str(tiny_dataset)), config_of(), 1)
    assert to_lines(shares * 20)[-1] == "and 10 more tasks, in --json"
    assert to_lines(shares)[0].split() == ["task", "rows", "tokens", "supervised", "gradient", "asked", "epochs"]
