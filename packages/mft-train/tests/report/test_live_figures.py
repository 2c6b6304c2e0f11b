"""Guards, shares, evaluations and the time left, in the table and on the page. Metrics files are made by hand here."""

import json

import pytest
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st

from mft_train.cli import main
from mft_train.report.run_log import RunLog, add_event
from mft_train.report.task_figures import duration_text, task_figures


def train(step, shares, **other):
    """A step of 100 tokens at 50 a second, of a run of 62 steps."""
    numbers = {"loss": 1.5, "learning_rate": 1e-4, "grad_norm": 0.5, "supervised_tokens": 40}
    numbers |= {"tokens": 100, "tokens_per_second": 50.0, "num_steps": 62}
    maps = {"task_losses": dict.fromkeys(shares, 1.0), "task_weights": dict.fromkeys(shares, 1.0)}
    return {"event": "train", "global_step": step, **numbers, **maps, "task_shares": shares, **other}


def validation(step, losses):
    return {"event": "validation", "global_step": step, "loss": losses["sql"], "task_losses": losses}


def evaluation(step, **values):
    return {"event": "evaluation", "global_step": step, "checkpoint": f"step-{step:08d}", "seconds": 1.0, **values}


EVENTS = [
    validation(0, {"sql": 2.0, "docs": 1.0, "web": 4.0}),
    train(1, {"sql": 0.25, "java": 0.75}),
    train(2, {"sql": 0.75, "java": 0.25}),
    validation(2, {"sql": 1.0, "docs": 1.05, "web": 4.07}),
    evaluation(1, numbers={"pass@1": 0.25, "n": 5}),
    evaluation(2, error="its command ended with exit code 1"),
]


@pytest.fixture
def run_dir(tmp_path):
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(event) + "\n" for event in EVENTS))
    (tmp_path / "config.yaml").write_text("model: base/\ndataset: none/\nmethod: lora\nmax_steps: null\nepochs: 1\n")
    return tmp_path


def report(*arguments):
    result = CliRunner().invoke(main, ["report", *map(str, arguments)])
    assert result.exit_code == 0, result.stderr
    return result.stdout


def test_the_table_tells_guards_shares_and_the_time_left(run_dir):
    lines = report(run_dir).splitlines()
    # 60 steps are left, each of 100 tokens at 50 a second.
    assert lines[0].startswith("2 steps, not finished, 2 min of training left; 200 tokens")
    assert [line.split()[-1] for line in lines if line.startswith(("sql", "java"))] == ["50.0%", "50.0%"]
    assert any(line.startswith("docs (guard)           1.0000") for line in lines)
    assert any(line.startswith("mean of trained tasks") for line in lines)
    # 5 % is told, 1.75 % is not.
    assert lines[-1] == "guard task docs: its validation loss has risen by 5.0%"


def test_the_page_has_them_too_and_curves_of_the_evaluations(run_dir):
    page = report(run_dir, "--html", "-")
    assert "Note: guard task docs: its validation loss has risen by 5.0%." in page
    assert page.count('data-label="pass@1"') == 1
    assert "Step 2: evaluation failed: its command ended with exit code 1" in page
    assert "<dt>Time left</dt><dd>2 min</dd>" in page
    assert "<dd>of 62</dd>" in page
    assert "Share of the objective" in page
    assert "Follow" not in page
    # Of further numbers, those that change.
    assert 'data-label="n"' not in page
    with (run_dir / "metrics.jsonl").open("a") as file:
        file.write(json.dumps(evaluation(3, numbers={"pass@1": 0.5, "n": 6})) + "\n")
    assert 'data-label="n"' in report(run_dir, "--html", "-")


@pytest.mark.parametrize(
    ("event", "words"),
    [
        (
            {"rule": "worst", "best_step": 4, "best_ratio": 0.9},
            "lowest worst loss over its first 0.9000 at step 4",
        ),
        (
            {"rule": "tasks", "best_steps": {"a": 2, "b": 4}},
            "best losses of tasks: a at step 2, b at step 4",
        ),
        ({"rule": "evaluation", "metric": "pass@1", "best_step": 4, "best_value": 0.5}, "best pass@1 0.5000 at step 4"),
        ({"best_step": 4, "best_loss": 1.5}, "best validation loss 1.5000 at step 4"),
    ],
)
def test_an_early_stop_is_told_by_its_rule(event, words):
    log = RunLog()
    for line in [{"event": "early_stop", "global_step": 9, **event}, {"event": "end", "global_step": 9}]:
        add_event(log, line)
    assert log.status == f"stopped early: {words}"
    assert log.seconds_left is None


@given(st.lists(st.tuples(st.floats(0, 1), st.floats(0.1, 1e6)), min_size=1, max_size=60), st.integers(0, 100))
def test_the_share_is_a_mean_and_the_time_left_lies_between_that_of_single_steps(steps, more):
    log = RunLog()
    for step, (share, rate) in enumerate(steps, start=1):
        event = train(step, {"a": share, "b": 1 - share}, tokens_per_second=rate, num_steps=len(steps) + more)
        add_event(log, event)
    shares = [figures.share for figures in task_figures(log)][:2]
    assert sum(shares) == pytest.approx(1)
    assert min(share for share, _ in steps) - 1e-9 <= shares[0] <= max(share for share, _ in steps) + 1e-9
    if more == 0:
        assert log.seconds_left is None
    else:
        last = [100 / rate for _, rate in steps[-50:]]
        assert min(last) * more * 0.999 <= log.seconds_left <= max(last) * more * 1.001


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0, "under 1 min"), (80, "1 min"), (3599, "1 h 0 min"), (5400, "1 h 30 min"), (260000, "3 days")],
)
def test_durations_are_words(seconds, text):
    assert duration_text(seconds) == text
