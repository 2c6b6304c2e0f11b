"""Evaluations by a command, beside whole runs of the real trainer: real shells, real signals."""

import json
import math
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mft_train.running import supervise
from mft_train.running.evaluation import MOST_NUMBERS, command_environment, read_numbers

SETTINGS = {
    "max_steps": 8,
    "global_batch_size": 4,
    "learning_rate": 0.01,
    "validation_interval": 0,
    "checkpoint_interval": 2,
    "keep_last": 1,
    "trackers": [],
}
BY_SCORE = {"best_rule": "evaluation", "evaluation_metric": "score.mean"}
MEASURED = {"tokens_per_second", "peak_memory_bytes", "seconds"}
JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**60), 2**60) | st.floats() | st.text(max_size=5),
    lambda values: st.lists(values, max_size=3) | st.dictionaries(st.text(max_size=5), values, max_size=4),
    max_leaves=12,
)


@pytest.fixture
def launch(launcher):
    return launcher(SETTINGS)


def events(run_dir, *kinds):
    """The events of these kinds by step: an evaluation is told when it ends, beside later steps."""
    lines = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    chosen = [{k: v for k, v in line.items() if k not in MEASURED} for line in lines if line["event"] in kinds]
    return sorted(chosen, key=lambda line: line["global_step"])


def state(run_dir, step):
    return json.loads((run_dir / "checkpoints" / f"step-{step:08d}" / "state" / "run.json").read_text())["validation"]


# Best at step 4.
SCORE = 'echo "{\\"score\\": {\\"mean\\": $(( 10 - (MFT_STEP - 4) * (MFT_STEP - 4) ))}, \\"name\\": \\"x\\"}"'


def test_every_checkpoint_is_evaluated_and_the_best_is_chosen_by_the_number(launch, tmp_path):
    command = f'test -f "$MFT_CHECKPOINT/model/adapter_model.safetensors" && test -z "$LOCAL_WORLD_SIZE" && {SCORE}'
    result = launch("run", evaluation_command=command, **BY_SCORE)
    assert result.exit_code == 0, result.stderr
    run = tmp_path / "run"
    assert events(run, "evaluation") == [
        {
            "event": "evaluation",
            "global_step": step,
            "checkpoint": f"step-{step:08d}",
            "numbers": {"score.mean": 10.0 - (step - 4) ** 2},
        }
        for step in (2, 4, 6, 8)
    ]
    best = json.loads((run / "checkpoints" / "best.json").read_text())
    assert (best["global_step"], best["metric"], best["value"]) == (4, "score.mean", 10)
    assert sorted(path.name for path in (run / "checkpoints").glob("step-*")) == ["step-00000004", "step-00000008"]
    printed = json.loads((run / "evaluations" / "step-00000004.json").read_text())
    assert printed == {"score": {"mean": 10}, "name": "x"}
    assert "evaluation of step-00000004  score.mean 10" in result.stderr
    # The last one is counted by a run that goes on, which does not make it again.
    assert state(run, 8)["unevaluated"] == [8]
    assert launch("run", "--resume", "max_steps=10", evaluation_command=command, **BY_SCORE).exit_code == 0
    assert [event["global_step"] for event in events(run, "evaluation")] == [2, 4, 6, 8, 10]
    assert state(run, 10)["seen"]["evaluation/higher/score.mean"] == {"value": -10, "step": 4, "num_worse": 2}


def test_the_interval_and_the_goal_are_heeded(launch, tmp_path):
    settings = {"evaluation_interval": 4, "evaluation_goal": "lower", "max_steps": 6}
    assert launch("run", evaluation_command=SCORE, **BY_SCORE, **settings).exit_code == 0
    assert [event["global_step"] for event in events(tmp_path / "run", "evaluation")] == [4, 6]
    assert json.loads((tmp_path / "run" / "checkpoints" / "best.json").read_text())["global_step"] == 6


@pytest.mark.parametrize(
    ("command", "problem"),
    [
        ("echo no words >&2; exit 3", "its command ended with exit code 3"),
        ("false | echo '{\"a\": 1}'", "its command ended with exit code 1"),
        ("echo hello", "it printed no JSON"),
        ("echo '[1]'", "its JSON is no object"),
        ('echo \'{"a": "b"}\'', "there is no number in its JSON"),
        ("sleep 60 & wait", "it did not end within evaluation_timeout_seconds (0.3)"),
        ("kill -KILL $$", "its command ended with exit code 137"),
    ],
)
def test_an_evaluation_that_fails_is_one_line_and_never_ends_the_run(launch, tmp_path, command, problem):
    settings = {
        "max_steps": 1,
        "checkpoint_interval": 0,
        "evaluation_timeout_seconds": 0.3 if "sleep" in command else 60.0,
    }
    result = launch("run", evaluation_command=command, **settings)
    assert result.exit_code == 0, result.stderr
    (event,) = events(tmp_path / "run", "evaluation")
    assert event["error"] == problem
    (line,) = [line for line in result.stderr.splitlines() if "failed, the run goes on" in line]
    assert line.startswith(f"the evaluation of step-00000001 failed, the run goes on: {problem} (")
    assert (tmp_path / "run" / "final").is_dir()
    (log,) = (tmp_path / "run" / "evaluations").iterdir()
    assert log.name == "step-00000001.log"


def test_a_number_that_is_missing_is_told_with_those_that_are_there(launch):
    result = launch("run", max_steps=2, evaluation_command='echo progress; echo \'{"a": 1, "b": 2}\'', **BY_SCORE)
    assert 'there is no number "score.mean" among a, b' in result.stderr


def test_a_run_stops_when_its_evaluations_have_stalled(launch, make_dataset, tmp_path):
    dataset = make_dataset(tmp_path / "blind", {"large": (9, 0)})  # nothing to validate, nothing needed
    settings = {
        "dataset": str(dataset),
        "max_steps": 40,
        "early_stopping_patience": 2,
        "early_stopping_rule": "evaluation",
    }
    result = launch("run", evaluation_command=SCORE, evaluation_metric="score.mean", **settings)
    assert result.exit_code == 0, result.stderr
    # Best at step 4, not at 6 and 8; the evaluation of step 8 counts from step 10 on.
    assert events(tmp_path / "run", "early_stop") == [
        {
            "event": "early_stop",
            "global_step": 10,
            "rule": "evaluation",
            "metric": "score.mean",
            "best_step": 4,
            "best_value": 10.0,
        }
    ]


def test_a_signal_ends_the_evaluation_and_the_resume_makes_it_anew(launch, tmp_path):
    flag, group = tmp_path / "flag", tmp_path / "group"
    first = f"echo $$ > {group}; kill -TERM {os.getpid()}; sleep 300 & wait"
    command = f"if [ -e {flag} ] || [ $MFT_STEP != 4 ]; then {SCORE}; else {first}; fi"
    settings = {"evaluation_command": command, **BY_SCORE, "lora": {"dropout": 0.1}, "max_steps": 12}
    started = time.monotonic()
    result = launch("cut", **settings)
    assert result.exit_code == 143, result.stderr
    assert time.monotonic() - started < 100
    with pytest.raises(ProcessLookupError):
        os.killpg(int(group.read_text()), 0)
    cut, whole = tmp_path / "cut", tmp_path / "whole"
    (stop,) = events(cut, "interrupt")
    assert 4 in state(cut, stop["global_step"])["unevaluated"]
    assert [event["global_step"] for event in events(cut, "evaluation")] == [2]
    assert not list((cut / "evaluations").glob("*4*"))
    flag.touch()
    assert launch("cut", "--resume", **settings).exit_code == 0
    assert launch("whole", **settings).exit_code == 0
    kinds = ("train", "validation", "evaluation", "end")
    assert events(cut, *kinds) == events(whole, *kinds)
    assert state(cut, 12) == state(whole, 12)
    best = [(run / "checkpoints" / "best.json").read_bytes() for run in (cut, whole)]
    assert best[0] == best[1]


@pytest.mark.slow
def test_two_processes_wait_for_an_evaluation_together(write_run, tmp_path):
    command = f'test -z "$RANK$WORLD_SIZE$MASTER_ADDR" && sleep 1 && {SCORE}'
    settings = {"max_steps": 40, "early_stopping_patience": 2, "early_stopping_rule": "evaluation"}
    path = write_run(**SETTINGS | settings, evaluation_command=command, evaluation_metric="score.mean")
    line = [sys.executable, "-m", "mft_train", "launch", str(path), "--processes", "2"]
    done = subprocess.run(line, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    (stop,) = events(tmp_path / "run", "early_stop")
    assert (stop["global_step"], stop["best_step"]) == (10, 4)
    assert [event["global_step"] for event in events(tmp_path / "run", "evaluation")] == [2, 4, 6, 8, 10]


def test_a_command_ends_with_the_process_that_wanted_it_even_by_sigkill(tmp_path):
    place = tmp_path / "pid"
    command = [sys.executable, "-I", "-S", supervise.__file__, "60", "sh", "-c", f"echo $$ > {place}; sleep 60 & wait"]
    program = f"import subprocess, time; subprocess.Popen({command!r}, stdin=subprocess.PIPE); time.sleep(60)"
    with subprocess.Popen([sys.executable, "-c", program]) as holder:
        wait_until(lambda: place.is_file() and place.read_text().strip())
        group = int(place.read_text())
        os.killpg(group, 0)
        holder.kill()
    wait_until(lambda: is_gone(group))


def wait_until(holds):
    deadline = time.monotonic() + 30
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def is_gone(group):
    try:
        os.killpg(group, 0)
    except ProcessLookupError:
        return True
    return False


@pytest.mark.parametrize(("line", "code"), [("exit 7", 7), ("kill -TERM $$", 128 + signal.SIGTERM), ("exit 0", 0)])
def test_the_exit_code_of_a_command_comes_through(line, code):
    command = [sys.executable, "-I", "-S", supervise.__file__, "60", "sh", "-c", line]
    with subprocess.Popen(command, stdin=subprocess.PIPE) as process:
        assert process.wait(30) == code


def has_number(value):
    """Whether a finite number stands in nested objects; JSON has null for others."""
    if isinstance(value, dict):
        return any(map(has_number, value.values()))
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


@given(st.dictionaries(st.text(max_size=5), JSON, max_size=6))
def test_every_number_that_is_read_is_finite_and_in_the_json(tmp_path_factory, document):
    path = Path(tmp_path_factory.getbasetemp()) / "printed.json"
    path.write_bytes(b"words before\n" + orjson.dumps(document))
    numbers = read_numbers(path, None) if has_number(document) else {}
    assert len(numbers) <= MOST_NUMBERS
    assert bool(numbers) == has_number(document)
    for name, value in numbers.items():
        assert math.isfinite(value)
        assert name.split(".")[0] in {key.split(".")[0] for key in document}


def test_the_numbers_of_a_results_file_are_read_by_dotted_names(tmp_path):
    path = tmp_path / "results.json"
    problems = [{"problem_id": "a", "num_samples": 1}]
    document = {"format_version": "1", "pass_at_k": {"pass@1": 0.5}, "strict": True, "problems": problems}
    path.write_text(json.dumps(document | {f"n{index}": index for index in range(60)}, indent=2))
    numbers = read_numbers(path, "n59")
    assert list(numbers)[:3] == ["n59", "pass_at_k.pass@1", "n0"]
    assert numbers["n59"] == 59
    assert len(numbers) == MOST_NUMBERS


@given(
    st.dictionaries(
        st.sampled_from(["RANK", "LOCAL_RANK", "MASTER_PORT", "HOME", "PATH", "MFT_TRAIN_LAUNCHER"]), st.text()
    )
)
def test_the_command_is_no_rank_and_keeps_everything_else(environment):
    given = command_environment(environment, Path("/run/checkpoints/step-00000002"), 2)
    kept = {name: value for name, value in environment.items() if name in ("HOME", "PATH")}
    assert given == kept | {"MFT_CHECKPOINT": "/run/checkpoints/step-00000002", "MFT_STEP": "2"}
