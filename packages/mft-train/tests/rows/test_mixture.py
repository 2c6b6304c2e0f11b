"""How often rows are drawn: repeats, proportions, tasks left out; in one epoch and the next, and after a resume."""

import json
import math
from collections import Counter
from pathlib import Path

import pytest
import yaml
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from mft_train.cli import main
from mft_train.config.config import RunConfig
from mft_train.errors import TrainError
from mft_train.rows.dataset_dir import DatasetDir, Task, open_dataset
from mft_train.rows.mixture import drawn_dataset, epoch_rows, expected_counts, proportions, row_shares
from mft_train.rows.row_stream import RowStream, StreamPosition


@pytest.fixture(autouse=True)
def one_rank(monkeypatch):
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "1")


def settings(**values) -> RunConfig:
    return RunConfig(model="base", dataset="dataset", output="run", max_steps=1, **values)


def stream(dataset, rank=0, world_size=1, **values) -> RowStream:
    config = settings(**values)
    return RowStream(drawn_dataset(dataset, config), config.mixture, 4, 0, rank, world_size, config.repeats)


def key(row) -> tuple[int, bytes]:
    return row.task_id, row.input_ids.tobytes()


def epoch(rows: RowStream, number: int = 0) -> list[tuple[int, bytes]]:
    steps = rows.steps(StreamPosition(number))
    return [key(row) for _ in range(rows.steps_per_epoch) for row in next(steps).rows]


def test_a_task_repeated_twice_has_each_row_twice_in_every_epoch(tiny_dataset):
    dataset = open_dataset(str(tiny_dataset))
    rows = stream(dataset, repeats={"small": 2.0})
    assert rows.epoch_size == 23 + 2 * 6
    del rows
    for number in (0, 1):
        seen = Counter(epoch(stream(dataset, repeats={"small": 2.0}), number))
        assert {count for (task, _), count in seen.items() if task == 0} == {1}
        assert {count for (task, _), count in seen.items() if task == 1} == {2}
        assert Counter(task for task, _ in seen) == {0: 23, 1: 6}


def test_a_fraction_draws_that_part_of_the_rows_and_others_in_the_next_epoch(tiny_dataset):
    dataset = open_dataset(str(tiny_dataset))
    parts = [Counter(epoch(stream(dataset, repeats={"large": 0.5, "small": 1.5}), number)) for number in (0, 1)]
    for seen in parts:
        assert [count for (task, _), count in seen.items() if task == 0] == [1] * 11
        assert sorted(count for (task, _), count in seen.items() if task == 1) == [1, 1, 1, 2, 2, 2]
    assert parts[0] != parts[1]


@pytest.mark.parametrize("values", [{"repeats": {"small": 0}}, {"mixture": {"large": 1, "small": 0}}])
def test_zero_leaves_a_task_out_of_training_but_not_out_of_validation(tiny_dataset, values):
    dataset = open_dataset(str(tiny_dataset))
    drawn = drawn_dataset(dataset, settings(**values))
    assert [task.name for task in drawn.trained_tasks] == ["large"]
    assert [task.validation_rows for task in drawn.tasks] == [5, 2]
    assert Counter(task for task, _ in epoch(stream(dataset, **values))) == {0: 23}


@pytest.mark.parametrize("repeats", [{"small": 2.0}, {"large": 0.5, "small": 1.5}])
def test_a_position_continues_repeats_with_the_same_rows(tiny_dataset, repeats):
    dataset = open_dataset(str(tiny_dataset))
    whole = stream(dataset, repeats=repeats)
    steps = whole.steps(StreamPosition())
    taken = [next(steps) for _ in range(2 * whole.steps_per_epoch)]
    del whole, steps
    for index in (1, len(taken) // 2 - 1, len(taken) // 2 + 2):
        resumed = stream(dataset, repeats=repeats).steps(taken[index].next_position)
        assert list(map(key, next(resumed).rows)) == list(map(key, taken[index + 1].rows))


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"mixture": {"larg": 1}}, 'mixture names unknown task "larg", tasks: large, small'),
        ({"repeats": {"larg": 1}}, 'repeats names unknown task "larg", tasks: large, small'),
        ({"mixture": {"large": 1}}, 'mixture does not say the proportion of task "small"'),
        ({"mixture": {"large": 0, "small": 0}}, "mixture leaves out every task"),
        ({"repeats": {"large": 0, "small": 0}}, "repeats leaves out every task"),
        ({"max_repetitions": {"larg": 1}}, 'max_repetitions names unknown task "larg"'),
        (
            {"mixture": {"large": 1000, "small": 1}},
            'task "small" has a share of 0.001 of the 29 rows of an',
        ),
        ({"repeats": {"small": 0.1}}, 'repeats 0.1 of the 6 rows of task "small" is no row'),
    ],
)
def test_a_mixture_that_cannot_be_drawn_is_refused(tiny_dataset, values, message):
    with pytest.raises(TrainError) as caught:
        drawn_dataset(open_dataset(str(tiny_dataset)), settings(**values))
    assert caught.value.message.startswith(message)


def test_mixture_and_repeats_exclude_each_other():
    for values, message in [
        ({"mixture": {"large": 1}, "repeats": {"large": 2}}, "give mixture or repeats, not both"),
        ({"mixture_exponent": 0, "repeats": {"large": 2}}, "give mixture_exponent or repeats, not both"),
        ({"max_repetitions": 2, "repeats": {"large": 2}}, "give max_repetitions or repeats, not both"),
        ({"mixture_exponent": 0, "mixture": {"large": 2}}, "give mixture or mixture_exponent, not both"),
        ({"mixture_unit": "tokens"}, "mixture_unit tokens has no effect without mixture or mixture_exponent"),
    ]:
        with pytest.raises(ValidationError, match=message):
            settings(**values)


@given(st.lists(st.tuples(st.integers(1, 10**6), st.floats(1, 100)), min_size=1, max_size=9), st.booleans())
def test_shares_sum_to_one_and_follow_what_is_drawn(tasks, is_mixture):
    numbers = {f"task-{index}": number for index, (_, number) in enumerate(tasks)}
    entries = [Task(f"task-{index}", index, rows, rows, 1, 0, 1) for index, (rows, _) in enumerate(tasks)]
    config = settings(mixture=numbers) if is_mixture else settings(repeats=numbers)
    shares = row_shares(entries, config)
    assert math.isclose(sum(shares), 1)
    drawn = [numbers[task.name] if is_mixture else int(numbers[task.name] * task.train_rows) for task in entries]
    assert shares == pytest.approx([part / sum(drawn) for part in drawn])


def tasks_of(sizes):
    """Tasks with these (rows, tokens)."""
    return [Task(f"task-{index}", index, *size, 1, 1, 1) for index, size in enumerate(sizes)]


def test_shares_by_an_exponent_of_a_worked_example():
    tasks = tasks_of([(100, 1000), (900, 90_000)])
    assert row_shares(tasks, settings(mixture_exponent=1.0)) == pytest.approx([0.1, 0.9])
    assert row_shares(tasks, settings(mixture_exponent=0.5)) == pytest.approx([0.25, 0.75])
    assert row_shares(tasks, settings(mixture_exponent=0)) == pytest.approx([0.5, 0.5])
    # Square roots of the tokens are as 31.6 to 300; a row of the second has 10 times the tokens of one of the first.
    parts = [1000**0.5 / 10, 90_000**0.5 / 100]
    shares = row_shares(tasks, settings(mixture_exponent=0.5, mixture_unit="tokens"))
    assert shares == pytest.approx([part / sum(parts) for part in parts])
    shares = row_shares(tasks, settings(mixture={"task-0": 1.0, "task-1": 1.0}, mixture_unit="tokens"))
    assert shares == pytest.approx([10 / 11, 1 / 11])


def test_repetitions_are_limited_in_a_worked_example():
    # 1,000 rows are drawn, 500 of each: the first has 100 rows, so at most 300; the others get 200 more.
    tasks = tasks_of([(100, 100), (900, 900)])
    values = {"mixture_exponent": 0, "max_repetitions": 3, "global_batch_size": 10}
    config = settings(**values).model_copy(update={"max_steps": 100})
    assert row_shares(tasks, config) == pytest.approx([0.3, 0.7])
    one = config.model_copy(update={"max_repetitions": {"task-0": 1.0}})
    assert row_shares(tasks, one) == pytest.approx([0.1, 0.9])
    with pytest.raises(TrainError) as caught:
        row_shares(tasks, config.model_copy(update={"max_steps": 301}))
    assert caught.value.format_message().startswith(
        "max_repetitions allow 3,000 rows, the run draws 3,010, at most 300 steps, or more repetitions"
    )


@given(
    st.lists(st.tuples(st.integers(1, 10**6), st.integers(1, 10**9)), min_size=1, max_size=9),
    st.floats(0, 2),
    st.sampled_from(["rows", "tokens"]),
    st.floats(0.1, 10),
    st.floats(0.01, 1),
)
def test_no_task_is_over_its_limit_and_the_others_keep_their_ratios(sizes, exponent, unit, most, part):
    tasks = tasks_of(sizes)
    total = sum(task.train_rows for task in tasks)
    steps = max(1, int(part * most * total))
    if steps > most * total:
        return
    config = RunConfig(
        model="", dataset="", output="", max_steps=steps, global_batch_size=1, mixture_exponent=exponent,
        mixture_unit=unit, max_repetitions=most,
    )  # fmt: skip
    free = row_shares(tasks, config.model_copy(update={"max_repetitions": None}))
    shares = row_shares(tasks, config)
    limits = [most * task.train_rows / steps for task in tasks]
    assert math.isclose(sum(shares), 1, rel_tol=1e-9)
    assert all(share <= limit * (1 + 1e-9) for share, limit in zip(shares, limits, strict=True))
    below = [index for index, share in enumerate(shares) if share < limits[index] * (1 - 1e-9)]
    for index in below:
        assert shares[index] / shares[below[0]] == pytest.approx(free[index] / free[below[0]], rel=1e-6)


MIXTURES = [{"mixture_exponent": 0.5}, {"mixture_exponent": 0, "max_repetitions": {"small": 2}}, {"max_repetitions": 1}]


@pytest.mark.parametrize("values", MIXTURES)
def test_a_run_draws_the_shares_and_a_position_continues_with_the_same_rows(tiny_dataset, values):
    dataset = open_dataset(str(tiny_dataset))
    config = settings(**values).model_copy(update={"max_steps": 7, "global_batch_size": 4})
    drawn = drawn_dataset(dataset, config)
    shares = proportions(drawn.trained_tasks, config)

    def opened():
        return RowStream(drawn, shares, 4, 0, 0, 1)

    whole = opened()
    steps = whole.steps(StreamPosition())
    taken = [next(steps) for _ in range(2 * whole.steps_per_epoch)]
    del whole, steps
    seen = Counter(row.task_id for step in taken for row in step.rows if row.loss_mask.any())
    for task in drawn.trained_tasks:
        assert seen[task.task_id] == pytest.approx(2 * 29 * shares[task.name], abs=3)
    for index in (1, len(taken) // 2 - 1, len(taken) // 2 + 2):
        resumed = opened().steps(taken[index].next_position)
        assert list(map(key, next(resumed).rows)) == list(map(key, taken[index + 1].rows))


@given(st.lists(st.integers(0, 9), min_size=3, max_size=3).filter(any))
def test_expected_counts_times_batches_are_the_counts_of_an_epoch(repeats):
    dataset = DatasetDir(
        Path("x"), 8, (Task("a", 0, 10, 100, 70, 0, 20), Task("b", 1, 3, 30, 30, 0, 3), Task("c", 2, 8, 8, 8, 0, 8)),
        9, True, "00", False,
    )  # fmt: skip
    config = settings(repeats=dict(zip("abc", map(float, repeats), strict=True)), global_batch_size=4)
    drawn = drawn_dataset(dataset, config)
    batches = sum(epoch_rows(drawn.trained_tasks, config)) / 4
    tokens, conversations = expected_counts(drawn, config)
    assert tokens == pytest.approx([70 * repeats[0] / batches, 30 * repeats[1] / batches, 8 * repeats[2] / batches])
    assert conversations == pytest.approx(
        [20 * repeats[0] / batches, 3 * repeats[1] / batches, 8 * repeats[2] / batches]
    )


@pytest.fixture
def launch(tiny_model, tiny_dataset, tmp_path):
    def launch(command, *arguments, **values):
        path = tmp_path / "run.yaml"
        base = {"model": str(tiny_model), "dataset": str(tiny_dataset), "output": str(tmp_path / "run")}
        path.write_text(yaml.safe_dump(base | {"global_batch_size": 4, "learning_rate": 0.01} | values))
        result = CliRunner().invoke(main, [command, str(path), *arguments])
        assert result.exit_code == 0, result.stderr
        return result.stdout

    return launch


@pytest.mark.parametrize(
    ("values", "rows"),
    [({"repeats": {"small": 2}}, 35), ({"repeats": {"large": 0.5}}, 17), ({"repeats": {"large": 0}}, 6)],
)
def test_a_plan_counts_the_rows_of_a_run(launch, tmp_path, values, rows):
    plan = json.loads(launch("plan", "--json", epochs=1, **values))
    assert (plan["rows"], plan["steps"]) == (rows, math.ceil(rows / 4))
    launch("launch", epochs=1, trackers=[], **values)
    written = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    trained = [event for event in written if event["event"] == "train"]
    assert len(trained) == plan["steps"]
    assert list(trained[0]["task_weights"]) == [name for name in ("large", "small") if values["repeats"].get(name) != 0]
    mean = 4 * sum(event["tokens"] for event in trained) / rows
    assert plan["tokens_per_step"] == pytest.approx(mean, rel=0.1 if "large" in values["repeats"] else 1e-2)
