import math
from dataclasses import asdict

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mft_train.checkpoint.validation_record import (
    Lowest,
    ValidationRecord,
    best_score,
    evaluation_score,
    stop_values,
    stopping_scores,
)
from mft_train.config.config import RunConfig

TASKS = ("a", "b")
LOSS = st.floats(allow_nan=True, allow_infinity=True, width=16)
POSITIVE = st.floats(min_value=0.01, max_value=100)
VALIDATIONS = st.lists(st.tuples(POSITIVE, POSITIVE, POSITIVE), min_size=1, max_size=12)
EVALUATED = {"evaluation_command": "true", "evaluation_metric": "pass@1"}


def settings(**values):
    return RunConfig.model_validate({"model": "m", "dataset": "d", "output": "o", "max_steps": 9} | values)


def record_of(validations, **fields):
    """The record after validations of tasks a and b, which are trained, and guard, which is not; all checkpoints."""
    record = ValidationRecord(tasks=TASKS, **fields)
    for step, losses in enumerate(validations):
        record = record.after_validation(dict(zip(("a", "b", "guard"), losses, strict=True)), step)
        record = record.after_checkpoint(step)
    return record


@given(st.lists(LOSS, max_size=20), st.integers(1, 4))
def test_the_lowest_is_the_first_of_the_least_finite_values_and_the_count_since(values, patience):
    lowest = Lowest()
    for step, value in enumerate(values):
        lowest = lowest.after(value, step)
    finite = [value for value in values if math.isfinite(value)]
    assert lowest.value == (min(finite) if finite else None)
    assert lowest.step == (values.index(min(finite)) if finite else 0)
    since = len(values) - 1 - lowest.step if finite else len(values)
    assert lowest.num_worse == since
    record = ValidationRecord(seen={"mean": lowest})
    assert record.is_stalled(["mean"], patience) == (since >= patience)
    assert not record.is_stalled(["mean"], 0)
    assert not record.is_stalled(["mean", "unknown"], patience)


@given(VALIDATIONS)
def test_every_rule_finds_its_step_whatever_the_guard_does(validations):
    record = record_of(validations)
    means = [(a + b) / 2 for a, b, _ in validations]
    worsts = [max(a / validations[0][0], b / validations[0][1]) for a, b, _ in validations]
    columns = {"mean": means, "worst": worsts, "task/a": [row[0] for row in validations]}
    for score, values in columns.items():
        assert record.best_of(score).step == values.index(min(values))
        assert record.best_of(score).value == pytest.approx(min(values))
    assert "task/guard" not in record.seen


@given(st.lists(st.tuples(LOSS, LOSS, LOSS), max_size=8), st.lists(st.integers(0, 9), max_size=3))
def test_a_record_comes_back_from_a_file_and_goes_on_alike(validations, unevaluated):
    record = record_of(validations, unevaluated=tuple(unevaluated))
    saved = orjson.loads(orjson.dumps(asdict(record)))
    again = ValidationRecord.from_json(saved)
    assert orjson.loads(orjson.dumps(asdict(again))) == saved
    more = {"a": 1.5, "b": 0.5, "guard": 2.0}
    assert again.after_validation(more, 99).seen == record.after_validation(more, 99).seen


def test_worst_is_by_hand_the_largest_loss_over_its_first():
    # b is at 1.1 of its first after the first validation, a at 0.9 and b at 1.05 after the second.
    record = record_of([(2.0, 1.0, 5.0), (1.0, 1.1, 5.0), (1.8, 1.05, 5.2)])
    assert record.seen["worst"] == Lowest(1.0, 0, 2)
    assert record.seen["mean"] == Lowest(1.05, 1, 1)
    assert record.seen["task/b"] == Lowest(1.0, 0, 2)
    assert record.risen(["guard"]) == pytest.approx({"guard": 0.04})
    assert record.risen(["b"]) == pytest.approx({"b": 0.05})
    assert record_of([(1.0, 1.0, 1.0), (1.0, 1.0, 1.019)]).risen(["guard"]) == {}


def test_a_loss_of_zero_has_a_ratio_and_one_that_is_not_finite_has_none():
    assert record_of([(0.0, 1.0, 1.0), (0.0, 0.5, 1.0)]).seen["worst"] == Lowest(1.0, 0, 1)
    assert record_of([(math.inf, 1.0, 1.0), (1.0, 1.0, 1.0)]).seen["worst"].value is None


def test_only_guards_to_validate_are_scored():
    record = ValidationRecord(tasks=("a",)).after_validation({"guard": 3.0}, 0)
    assert record.seen["mean"].value == 3.0


def test_only_a_validated_checkpoint_can_be_the_best():
    record = ValidationRecord(tasks=("a",)).after_checkpoint(1)
    assert record.best is None
    record = record.after_validation({"a": 2.0}, 2).after_checkpoint(2).after_validation({"a": 1.0}, 3)
    assert record.after_checkpoint(4).best == Lowest(2.0, 2)


def test_another_rule_or_other_tasks_choose_anew():
    record = record_of([(2.0, 1.0, 1.0), (1.0, 1.1, 1.0)])
    assert record.under("mean", TASKS) == record
    other = record.under("worst", TASKS)
    assert other.best is None
    assert other.seen == record.seen
    fewer = record.under("mean", ("a",))
    assert fewer.best is None
    assert "mean" not in fewer.seen
    assert fewer.best_of("task/a") == Lowest(1.0, 1)


def test_an_early_stop_waits_for_every_score_of_its_rule():
    record = record_of([(2.0, 1.0, 1.0), (1.0, 1.1, 1.0), (1.1, 1.2, 1.0)])
    by_task = settings(early_stopping_patience=2, early_stopping_rule="tasks")
    assert stopping_scores(by_task, record) == ["task/a", "task/b"]
    assert not record.is_stalled(stopping_scores(by_task, record), 2)
    assert record.is_stalled(stopping_scores(by_task, record), 1)
    assert stop_values(by_task, record) == {
        "rule": "tasks",
        "best_steps": {"a": 1, "b": 0},
        "best_losses": {"a": 1.0, "b": 1.0},
    }
    worst = settings(early_stopping_patience=2, early_stopping_rule="worst")
    assert record.is_stalled(stopping_scores(worst, record), 2)
    assert stop_values(worst, record) == {"rule": "worst", "best_step": 0, "best_ratio": 1.0}
    mean = settings(early_stopping_patience=1)
    assert stop_values(mean, record) == {"rule": "mean", "best_step": 1, "best_loss": 1.05}


def test_an_evaluation_is_a_score_of_its_own_for_every_number_and_goal():
    config = settings(best_rule="evaluation", **EVALUATED)
    assert best_score(config) == evaluation_score(config) == "evaluation/higher/pass@1"
    record = ValidationRecord(rule=best_score(config)).after_evaluation(best_score(config), -0.5, 4)
    record = record.after_evaluation(best_score(config), -0.25, 8)
    assert record.best == Lowest(-0.5, 4, 1)
    assert stop_values(config, record) == {
        "rule": "evaluation",
        "metric": "pass@1",
        "best_step": 4,
        "best_value": 0.5,
    }


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"early_stopping_rule": "worst"}, "no effect without early_stopping_patience"),
        ({"best_rule": "evaluation"}, "needs an evaluation_command and an evaluation_metric"),
        ({"early_stopping_rule": "evaluation", "early_stopping_patience": 1}, "needs an evaluation_command"),
        ({"evaluation_metric": "pass@1"}, "evaluation_metric has no effect without an evaluation_command"),
        ({**EVALUATED, "evaluation_interval": 30}, "30 is not a multiple of checkpoint_interval 50"),
        ({**EVALUATED, "evaluation_interval": 30, "checkpoint_interval": 0}, "needs a checkpoint_interval"),
        ({"early_stopping_patience": 1, "validation_interval": 0}, "needs a validation_interval"),
    ],
)
def test_rules_that_cannot_be_followed_are_refused(values, message):
    with pytest.raises(ValueError, match=message):
        settings(**values)
