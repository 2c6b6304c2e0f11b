"""The best model of every task, guard tasks and the rules of stopping early, in whole runs of the real command."""

import json
import shutil

import pytest

SETTINGS = {
    "max_steps": 8,
    "global_batch_size": 4,
    "learning_rate": 0.03,
    "validation_interval": 2,
    "checkpoint_interval": 2,
    "keep_last": 1,
    "trackers": [],
}
MEASURED = {"tokens_per_second", "peak_memory_bytes", "num_steps"}  # the last is of a run that was made longer


@pytest.fixture
def launch(launcher):
    return launcher(SETTINGS)


def events(run_dir, *kinds):
    lines = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in line.items() if k not in MEASURED} for line in lines if line["event"] in kinds]


def bests(run_dir):
    """Record and weights of every task's best model."""
    folders = sorted((run_dir / "best").iterdir())
    return {
        folder.name: (json.loads((folder / "best.json").read_text()), next(folder.glob("*.safetensors")).read_bytes())
        for folder in folders
    }


def validated(run_dir, task):
    """Loss and step of the task's best validation at a checkpoint."""
    lines = [line for line in events(run_dir, "validation") if line["global_step"]]
    return min((line["task_losses"][task], line["global_step"]) for line in lines)


@pytest.mark.parametrize("method", ["lora", "full"])
def test_every_task_keeps_its_best_model_through_kill_and_resume(launch, tmp_path, method):
    settings = {"method": method, "lora": {"dropout": 0.1}, "best_rule": "worst", "loss": {"balancer": "focal"}}
    # Large enough steps that the tasks are best at different ones.
    settings |= {"learning_rate": 0.03 if method == "lora" else 0.01, "schedule": "constant"}
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    result = launch("whole", **settings)
    assert result.exit_code == 0, result.stderr
    for task, (record, weights) in bests(whole).items():
        assert (record["loss"], record["global_step"]) == validated(whole, task)
        checkpoint = whole / "checkpoints" / record["checkpoint"] / "model"
        assert not checkpoint.is_dir() or next(checkpoint.glob("*.safetensors")).read_bytes() == weights
    assert ("up to" in result.stderr) == (method == "full")
    # Killed after the checkpoint of step 4 had its name, and before anything else was done about it.
    assert launch("cut", "max_steps=4", **settings).exit_code == 0
    for path in (cut / "final", cut / "best"):
        shutil.rmtree(path)
    (cut / "best").mkdir()
    (cut / "best" / ".large.partial").mkdir()
    (cut / "checkpoints" / "best.json").unlink()
    assert launch("cut", "--resume", **settings).exit_code == 0
    assert events(cut, "train", "validation", "end") == events(whole, "train", "validation", "end")
    assert bests(cut) == bests(whole)
    records = [run / "checkpoints" / "best.json" for run in (whole, cut)]
    assert records[0].read_bytes() == records[1].read_bytes()
    states = [run / "checkpoints" / "step-00000008" / "state" / "run.json" for run in (whole, cut)]
    found = [json.loads(path.read_text())["validation"] for path in states]
    assert found[0] == found[1]


def test_no_best_models_are_kept_where_none_are_asked_for(launch, tmp_path):
    assert launch("run", "best_of_tasks=[small]", max_steps=2).exit_code == 0
    assert list(bests(tmp_path / "run")) == ["small"]
    assert launch("none", "best_of_tasks=false", max_steps=2).exit_code == 0
    assert not (tmp_path / "none" / "best").exists()
    result = launch("other", "best_of_tasks=[tiny]")
    assert 'best_of_tasks names "tiny", which is not trained and validated, tasks: large, small' in result.stderr


def test_a_guard_task_is_never_trained_and_told_if_its_loss_has_risen(launch, make_dataset, tmp_path):
    # Four rows of random tokens learned by heart: the loss of others rises.
    dataset = make_dataset(tmp_path / "dataset", {"large": (4, 2), "small": (6, 2)})
    settings = {"dataset": str(dataset), "method": "full", "learning_rate": 0.01, "max_steps": 40}
    settings |= {"schedule": "constant", "validation_interval": 20, "checkpoint_interval": 20}
    result = launch("run", "guards=[small]", **settings)
    assert result.exit_code == 0, result.stderr
    run = tmp_path / "run"
    assert all(list(line["task_losses"]) == list(line["task_weights"]) == ["large"] for line in events(run, "train"))
    first, *_, last = events(run, "validation")
    rise = last["task_losses"]["small"] / first["task_losses"]["small"] - 1
    assert rise > 0.02
    assert events(run, "end") == [{"event": "end", "global_step": 40, "risen_guards": {"small": pytest.approx(rise)}}]
    assert f'guard task "small": its loss rose by {rise:.1%}' in result.stderr
    assert last["loss"] == last["task_losses"]["large"]
    assert list(bests(run)) == ["large"]
    # As a task that `repeats` leaves out.
    assert launch("left-out", "repeats={small: 0}", **settings).exit_code == 0
    assert events(tmp_path / "left-out", "train", "validation", "end") == events(run, "train", "validation", "end")
    assert "guards is [], the checkpoint was made with ['small']" in launch("run", "--resume", **settings).stderr


def test_a_guard_that_stays_where_it_was_is_not_told(launch, tmp_path):
    result = launch("run", guards=["small"], learning_rate=1e-6, max_steps=1)
    assert result.exit_code == 0
    assert "guard task" not in result.stderr
    assert events(tmp_path / "run", "end") == [{"event": "end", "global_step": 1}]


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["guards=[tiny]"], 'guards names unknown task "tiny", tasks: large, small'),
        (["guards=[large, small]"], "guards leave no task to train"),
        (["guards=[small]", "repeats={small: 0}"], 'guard task "small" is in repeats too'),
    ],
)
def test_guards_that_cannot_be_are_one_line(launch, tmp_path, overrides, message):
    result = launch("run", *overrides)
    assert result.exit_code == 1
    assert message in result.stderr
    assert not (tmp_path / "run").exists()


def test_a_guard_without_validation_rows_is_refused(launch, make_dataset, tmp_path):
    dataset = make_dataset(tmp_path / "blind", {"large": (9, 2), "small": (6, 0)})
    assert 'guard task "small" has no validation rows' in launch("run", f"dataset={dataset}", "guards=[small]").stderr


@pytest.mark.parametrize("rule", ["worst", "tasks"])
def test_a_run_that_gets_worse_stops_by_any_rule(launch, tmp_path, rule):
    settings = {"learning_rate": 0.5, "max_grad_norm": 100.0, "schedule": "constant", "max_steps": 50}
    settings |= {"validation_interval": 1, "checkpoint_interval": 1, "early_stopping_patience": 2}
    assert launch("run", early_stopping_rule=rule, **settings).exit_code == 0
    run = tmp_path / "run"
    (stop,) = events(run, "early_stop")
    assert stop["rule"] == rule
    lines = events(run, "validation")
    losses = {task: [line["task_losses"][task] for line in lines] for task in ("large", "small")}
    if rule == "tasks":
        best = {task: values.index(min(values)) for task, values in losses.items()}
        assert stop["best_steps"] == best
        assert stop["global_step"] == max(best.values()) + 2 < 50
    else:
        ratios = [max(losses[task][step] / losses[task][0] for task in losses) for step in range(len(lines))]
        assert stop["best_ratio"] == pytest.approx(min(ratios))
        assert stop["global_step"] == stop["best_step"] + 2 == ratios.index(min(ratios)) + 2 < 50
