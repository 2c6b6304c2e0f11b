"""A signal does not wait for a validation: it is cut short, and made by the resume."""

import json
import signal

import pytest
from click.testing import CliRunner

from mft_train.cli import main
from mft_train.loss import task_losses as module

SETTINGS = {"max_steps": 6, "global_batch_size": 4, "learning_rate": 0.01, "validation_interval": 2, "trackers": []}
MEASURED = {"tokens_per_second", "peak_memory_bytes"}
NUM_ROWS = 7  # of a validation


@pytest.fixture
def launch(write_run):
    path = write_run(**SETTINGS, lora={"dropout": 0.1}, checkpoint_interval=2)
    return lambda output, *arguments: CliRunner().invoke(main, ["launch", str(path), f"output={output}", *arguments])


def events(run_dir, *kinds):
    lines = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in line.items() if k not in MEASURED} for line in lines if line["event"] in kinds]


@pytest.fixture
def signal_in_validation(monkeypatch):
    """Sends SIGTERM in the second row of validation number `number`, from 0; counts the rows that follow."""

    def signal_in_validation(number):
        rows, pack = [], module.pack_rows

        def counted(batch):
            rows.append(batch)
            if len(rows) == number * NUM_ROWS + 2:
                signal.raise_signal(signal.SIGTERM)
            return pack(batch)

        monkeypatch.setattr(module, "pack_rows", counted)
        return rows

    yield signal_in_validation
    monkeypatch.undo()


@pytest.mark.parametrize("number", [1, 3])  # after step 2, and after the last
def test_a_validation_that_is_cut_short_is_made_by_the_resume(
    launch, tmp_path, signal_in_validation, number, monkeypatch
):
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    assert launch(whole).exit_code == 0
    rows = signal_in_validation(number)
    result = launch(cut)
    assert result.exit_code == 143, result.stderr
    assert len(rows) == number * NUM_ROWS + 2, "no row is run after the signal"
    assert [event["global_step"] for event in events(cut, "interrupt")] == [2 * number]
    assert len(events(cut, "validation")) == number
    assert not (cut / "final").exists()
    monkeypatch.undo()
    assert launch(cut, "--resume").exit_code == 0
    for kind in ("train", "validation", "end"):
        assert events(cut, kind) == events(whole, kind)
    best = [(run / "checkpoints" / "best.json").read_bytes() for run in (whole, cut)]
    assert best[0] == best[1]


def test_a_signal_before_the_first_step_ends_the_run_without_a_checkpoint(launch, tmp_path, signal_in_validation):
    rows = signal_in_validation(0)
    result = launch(tmp_path / "run")
    assert result.exit_code == 143
    assert len(rows) == 2
    assert not (tmp_path / "run" / "checkpoints").exists()
