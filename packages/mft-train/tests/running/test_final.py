"""The end of a run: nothing that happens there may lose it, and `end` is its last word."""

import errno
import json
import shutil
import signal

import pytest
import yaml
from click.testing import CliRunner

from mft_train.checkpoint import checkpoint
from mft_train.cli import main

SETTINGS = {"max_steps": 3, "global_batch_size": 4, "validation_interval": 0, "trackers": []}


@pytest.fixture
def launch(write_run):
    path = write_run(**SETTINGS)
    return lambda *arguments: CliRunner().invoke(main, ["launch", str(path), *arguments])


def events(run_dir):
    return [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]


def weights(directory):
    return {path.name: path.read_bytes() for path in directory.glob("*.safetensors")}


@pytest.fixture
def while_final_is_written(monkeypatch):
    """Does something in the middle of writing `final/`, and nowhere else."""

    def while_final_is_written(action):
        write = checkpoint.write_weights

        def disturbed(model, files, target):
            write(model, files, target)
            if "final" in target.name:
                action()

        monkeypatch.setattr(checkpoint, "write_weights", disturbed)

    return while_final_is_written


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_while_final_is_written_waits_for_it(launch, tmp_path, while_final_is_written, number):
    escaped = []
    previous = signal.signal(number, lambda *_: escaped.append(number))
    try:
        while_final_is_written(lambda: signal.raise_signal(number))
        result = launch()
    finally:
        signal.signal(number, previous)
    assert escaped == []
    assert result.exit_code == 0, result.stderr
    assert (tmp_path / "run" / "final" / "adapter_model.safetensors").is_file()
    assert events(tmp_path / "run")[-1] == {"event": "end", "global_step": 3}


def test_a_full_disk_at_the_end_costs_nothing(launch, tmp_path, while_final_is_written):
    def fill():
        raise OSError(errno.ENOSPC, "No space left on device")

    while_final_is_written(fill)
    result = launch()
    assert result.exit_code == 1
    assert "cannot be written: [Errno 28] No space left on device" in result.stderr
    run_dir = tmp_path / "run"
    assert "end" not in [event["event"] for event in events(run_dir)]
    kept = weights(run_dir / "checkpoints" / "step-00000003" / "model")
    assert len(kept) == 1
    while_final_is_written(lambda: None)


def test_the_run_whose_end_failed_is_ended_by_a_resume(launch, tmp_path):
    assert launch().exit_code == 0
    run_dir = tmp_path / "run"
    whole, final = events(run_dir), weights(run_dir / "final")
    shutil.rmtree(run_dir / "final")
    assert launch("--resume").exit_code == 0
    assert weights(run_dir / "final") == final == weights(run_dir / "checkpoints" / "step-00000003" / "model")
    assert [event for event in events(run_dir) if event["event"] != "resume"] == whole
    assert launch("--resume").exit_code == 0, "an ended run can be resumed: there is nothing to do"
    assert [event["event"] for event in events(run_dir)].count("end") == 1


def test_final_never_stands_beside_a_longer_run_that_is_not_over(launch, tmp_path, monkeypatch):
    assert launch().exit_code == 0
    final = tmp_path / "run" / "final"
    seen = []
    monkeypatch.setattr(checkpoint, "random_state", lambda: seen.append(final.exists()) or {"python": 0})
    assert launch("--resume", "max_steps=5", "checkpoint_interval=1").exit_code == 0
    assert seen == [False, False]
    assert final.is_dir()
    assert [event["event"] for event in events(tmp_path / "run")].count("end") == 1


def test_the_last_step_has_a_checkpoint_whatever_the_interval(launch, tmp_path):
    assert launch("checkpoint_interval=0").exit_code == 0
    assert [path.name for path in (tmp_path / "run" / "checkpoints").glob("step-*")] == ["step-00000003"]


def test_checkpoints_are_taken_unless_they_are_turned_off(launch, tmp_path):
    assert launch("max_steps=51").exit_code == 0
    names = sorted(path.name for path in (tmp_path / "run" / "checkpoints").glob("step-*"))
    assert names == ["step-00000050", "step-00000051"]


def test_the_config_of_a_run_says_what_auto_came_to(launch, tmp_path):
    assert launch("gradient_checkpointing=auto").exit_code == 0
    written = yaml.safe_load((tmp_path / "run" / "config.yaml").read_text())
    settled = {name: written[name] for name in ("dtype", "attention", "gradient_checkpointing")}
    assert settled == {"dtype": "float32", "attention": "segments", "gradient_checkpointing": False}


def test_a_run_that_cannot_begin_leaves_no_output(launch, tmp_path):
    assert launch("lora.target_modules=[nothing]").exit_code == 1
    assert not (tmp_path / "run").exists()


def test_overwrite_deletes_the_earlier_run_only_once_the_new_one_can_begin(launch, tmp_path):
    assert launch().exit_code == 0
    final = weights(tmp_path / "run" / "final")
    assert launch("--overwrite", "lora.target_modules=[nothing]").exit_code == 1
    assert weights(tmp_path / "run" / "final") == final


def test_a_resume_tells_of_a_checkpoint_that_a_kill_left_without_its_event(launch, tmp_path):
    assert launch().exit_code == 0
    path = tmp_path / "run" / "metrics.jsonl"
    whole = [line for line in path.read_text().splitlines() if '"resume"' not in line]
    path.write_text("".join(f"{line}\n" for line in whole if not line.startswith('{"event":"checkpoint"')))
    assert launch("--resume").exit_code == 0
    told = [line for line in path.read_text().splitlines() if line.startswith('{"event":"checkpoint"')]
    assert told == [line for line in whole if line.startswith('{"event":"checkpoint"')][-1:]
