"""Trackers: what TensorBoard, Weights & Biases (offline) and MLflow (a local store) are left with after real runs."""

import json
import sys

import pytest
import yaml
from accelerate import PartialState
from accelerate.tracking import GeneralTracker
from click.testing import CliRunner

from mft_train.cli import main
from mft_train.tracking import trackers
from mft_train.tracking.trackers import HostedRun, mlflow_name, numbers_of

SETTINGS = {"max_steps": 4, "global_batch_size": 4, "validation_interval": 2, "checkpoint_interval": 2}


@pytest.fixture
def launch(tiny_model, tiny_dataset, tmp_path):
    def launch(*arguments, **settings):
        values = {"model": str(tiny_model), "dataset": str(tiny_dataset), "output": str(tmp_path / "run")}
        path = tmp_path / "run.yaml"
        path.write_text(yaml.safe_dump(values | SETTINGS | settings))
        return CliRunner().invoke(main, ["launch", str(path), *arguments])

    return launch


def events(run_dir):
    return [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]


def scalars(run_dir, name):
    """Steps and values of a TensorBoard scalar."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    accumulator = EventAccumulator(str(run_dir / "tensorboard"))
    accumulator.Reload()
    return [(scalar.step, scalar.value) for scalar in accumulator.Scalars(name)]


def test_tensorboard_has_the_numbers_of_the_events_once_after_a_resume(launch, tmp_path):
    run_dir = tmp_path / "run"
    assert launch().exit_code == 0
    (run_dir / "checkpoints" / "step-00000004" / "state" / "run.json").unlink()
    assert launch("--resume").exit_code == 0
    written = events(run_dir)
    for event, name, task in (("train", "loss", None), ("validation", "task_perplexities", "small")):
        lines = [line for line in written if line["event"] == event]
        expected = [(line["global_step"], line[name][task] if task else line[name]) for line in lines]
        found = scalars(run_dir, "/".join(filter(None, (event, name, task))))
        assert [step for step, _ in found] == [step for step, _ in expected]
        assert [value for _, value in found] == pytest.approx([value for _, value in expected], rel=1e-6)


def test_without_trackers_there_is_metrics_jsonl_alone(launch, tmp_path):
    assert launch(trackers=[]).exit_code == 0
    assert not (tmp_path / "run" / "tensorboard").exists()
    assert events(tmp_path / "run")[-1]["event"] == "end"


@pytest.mark.parametrize("name", trackers.HOSTED)
def test_a_missing_package_is_told_before_anything_is_made(launch, tmp_path, name, monkeypatch):
    # None in sys.modules is how Python itself marks a module that cannot be imported.
    monkeypatch.setitem(sys.modules, name, None)
    result = launch(trackers=["tensorboard", name], model="nowhere")
    assert result.exit_code == 1
    assert result.stderr.splitlines()[-1] == (
        f"Error: tracker {name} is not installed, install it with `pip install 'mft-train[{name}]'`, "
        "or take it out of trackers"
    )
    assert not (tmp_path / "run").exists()


def test_wandb_gets_the_numbers_and_a_resume_goes_on_with_its_run(launch, tmp_path, monkeypatch):
    pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    run_dir = tmp_path / "run"
    result = launch(trackers=["wandb"], tracker_project="demo")
    assert result.exit_code == 0, result.stderr
    saved = json.loads((run_dir / "trackers.json").read_text())
    assert launch("--resume", trackers=["wandb"], tracker_project="demo", max_steps=6).exit_code == 0
    assert json.loads((run_dir / "trackers.json").read_text()) == saved
    assert saved["wandb"]["project"] == "demo"
    run_id = saved["wandb"]["run_id"]
    files = sorted((run_dir / "wandb").glob(f"offline-run-*-{run_id}/run-{run_id}.wandb"))
    assert len(files) == 2, "one for each start, which `wandb sync` joins by the id"
    for file in files:
        content = file.read_bytes()
        for name in (b"train/task_losses/large", b"validation/perplexity", b"global_step"):
            assert name in content


def mlflow_history(run_id, name):
    """Steps and values of an MLflow metric in the order in which they came."""
    from mlflow import MlflowClient

    history = MlflowClient().get_metric_history(run_id, name)
    return [(metric.step, metric.value) for metric in sorted(history, key=lambda metric: metric.timestamp)]


@pytest.fixture
def mlflow_store(tmp_path, monkeypatch):
    pytest.importorskip("mlflow")
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", (tmp_path / "store").as_uri())
    return tmp_path / "store"


def test_mlflow_gets_the_numbers_and_a_resume_goes_on_with_its_run(launch, tmp_path, mlflow_store):
    from mlflow import MlflowClient

    run_dir = tmp_path / "run"
    settings = {"trackers": ["mlflow"], "tracker_project": "demo", "tracker_run_name": "first"}
    result = launch(**settings)
    assert result.exit_code == 0, result.stderr
    run_id = json.loads((run_dir / "trackers.json").read_text())["mlflow"]["run_id"]
    run = MlflowClient().get_run(run_id)
    assert (run.info.status, run.info.run_name, run.data.params["lora.rank"]) == ("FINISHED", "first", "16")
    (run_dir / "checkpoints" / "step-00000004" / "state" / "run.json").unlink()
    assert launch("--resume", **settings).exit_code == 0
    assert json.loads((run_dir / "trackers.json").read_text())["mlflow"]["run_id"] == run_id
    expected = {line["global_step"]: line["loss"] for line in events(run_dir) if line["event"] == "train"}
    history = mlflow_history(run_id, "train/loss")
    assert [step for step, _ in history] == [1, 2, 3, 4, 3, 4], "steps done again are sent again"
    assert set(history) == set(expected.items()), "with the same values"


def test_an_mlflow_run_that_fails_is_marked_so(launch, tmp_path, mlflow_store):
    from mlflow import MlflowClient

    result = launch(trackers=["mlflow"], learning_rate=1e30, method="full")
    assert result.exit_code == 1
    run_id = json.loads((tmp_path / "run" / "trackers.json").read_text())["mlflow"]["run_id"]
    assert MlflowClient().get_run(run_id).info.status == "FAILED"


def test_a_tracker_that_cannot_be_started_ends_the_run_before_its_first_step(launch, tmp_path, monkeypatch):
    pytest.importorskip("mlflow")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    result = launch(trackers=["tensorboard", "mlflow"])
    assert result.exit_code == 1
    errors = [line for line in result.stderr.splitlines() if line.startswith("Error: ")]
    assert len(errors) == 1
    assert errors[0].startswith("Error: tracker mlflow cannot be started: ")
    assert not (tmp_path / "run" / "metrics.jsonl").exists()


class LineTracker(GeneralTracker):
    """A tracker of one's own, as accelerate documents it: writes to a list while its server is up."""

    name = "lines"
    requires_logging_directory = False

    def __init__(self):
        super().__init__()
        self.is_up = True
        self.lines = []
        self.endings = []

    @property
    def tracker(self):
        return self

    def __exit__(self, error_type, error, trace):
        if not self.is_up:
            raise ConnectionError("down")
        self.endings.append(error_type)

    def log(self, values, step=None, **_):
        if not self.is_up:
            raise ConnectionError("down\nand more")
        self.lines.append((step, values))


def test_what_a_server_missed_is_sent_when_it_is_back(capsys, monkeypatch):
    PartialState(cpu=True)
    monkeypatch.setattr(trackers, "RETRY_SECONDS", 0.0)
    server = LineTracker()
    hosted = HostedRun("mlflow", server)
    for step in range(1, 6):
        server.is_up = step not in (2, 3)
        hosted.write({"train/loss": float(step)}, step)
    assert server.lines == [(step, {"train/loss": float(step)}) for step in range(1, 6)]
    assert capsys.readouterr().err == "tracker mlflow fails, the run goes on and tries again: down\n"
    hosted.close(ValueError, ValueError(), None)
    assert server.endings == [ValueError]


def test_a_server_that_stays_away_is_not_asked_at_every_step_and_never_ends_the_run(capsys):
    PartialState(cpu=True)
    server = LineTracker()
    server.is_up = False
    hosted = HostedRun("wandb", server)
    for step in range(1, 6):
        hosted.write({"train/loss": float(step)}, step)
    server.is_up = True
    hosted.write({"train/loss": 6.0}, 6)
    assert server.lines == [], "the next try is minutes away"
    server.is_up = False
    hosted.close(None, None, None)
    assert capsys.readouterr().err.splitlines() == [
        "tracker wandb fails, the run goes on and tries again: down",
        "tracker wandb lacks 6 events that could not be sent",
        "tracker wandb could not end its run: down",
    ]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "not a list of tracker runs"),
        ('{"format_version": "9"}', "format_version is unknown"),
        ("[]", "not a list"),
    ],
)
def test_a_bad_list_of_runs_is_one_line_of_error(launch, tmp_path, content, message):
    assert launch().exit_code == 0
    (tmp_path / "run" / "trackers.json").write_text(content)
    result = launch("--resume")
    assert result.exit_code == 1
    assert message in result.stderr
    assert result.stderr.splitlines()[-1].startswith("Error: ")


def test_only_numbers_are_tracked_under_names_of_event_key_and_task():
    values = {"global_step": 3, "loss": 1.5, "perplexity": None, "task_losses": {"a/b": 1.0, "c": None}, "path": "x"}
    assert numbers_of("validation", values) == {"validation/loss": 1.5, "validation/task_losses/a/b": 1.0}


def test_task_names_that_differ_in_refused_characters_stay_apart_in_mlflow():
    assert mlflow_name("train/task_losses/c++") == "train/task_losses/c_2b__2b_"
    assert mlflow_name("train/task_losses/c#") == "train/task_losses/c_23_"
    assert mlflow_name("train/task_losses/Übersetzung-2.1 b") == "train/task_losses/Übersetzung-2.1 b"
