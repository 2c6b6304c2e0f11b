import json

import pytest

from mft_train.checkpoint.checkpoint_list import latest_checkpoint, retain
from mft_train.checkpoint.validation_record import Lowest, ValidationRecord
from mft_train.errors import TrainError


@pytest.fixture
def run_dir(tmp_path):
    """A run directory with whole checkpoints after 1 to 5 steps."""
    for step in range(1, 6):
        state = tmp_path / "checkpoints" / f"step-{step:08d}" / "state"
        state.mkdir(parents=True)
        (state / "optimizer-0000.safetensors").write_bytes(b"12345")
        (state / "run.json").write_text(
            json.dumps({"format_version": "3", "files": {"state/optimizer-0000.safetensors": 5}})
        )
    return tmp_path


def steps(run_dir):
    return [int(path.name[-8:]) for path in sorted((run_dir / "checkpoints").glob("step-*"))]


def best(run_dir):
    return json.loads((run_dir / "checkpoints" / "best.json").read_text())


def test_the_latest_whole_checkpoint_is_found_and_damage_is_named(run_dir):
    checkpoints = run_dir / "checkpoints"
    (checkpoints / ".step-00000006.partial").mkdir()
    assert latest_checkpoint(run_dir) == (checkpoints / "step-00000005", [])
    (checkpoints / "step-00000005" / "state" / "optimizer-0000.safetensors").write_bytes(b"123")
    (checkpoints / "step-00000004" / "state" / "optimizer-0000.safetensors").unlink()
    (checkpoints / "step-00000003" / "state" / "run.json").write_text("[1]")
    found, damaged = latest_checkpoint(run_dir)
    assert found == checkpoints / "step-00000002"
    assert [reason for _, reason in damaged] == [
        "state/optimizer-0000.safetensors has 3 bytes, 5 were written",
        "state/optimizer-0000.safetensors is missing",
        "state/run.json is damaged",
    ]


def test_no_checkpoint_is_none_and_only_damaged_ones_are_an_error(run_dir, tmp_path_factory):
    assert latest_checkpoint(tmp_path_factory.mktemp("empty")) == (None, [])
    for path in (run_dir / "checkpoints").glob("*/state/run.json"):
        path.unlink()
    with pytest.raises(TrainError, match=r"no checkpoint is whole: state/run\.json is missing"):
        latest_checkpoint(run_dir)


def by_mean(loss, step, **more):
    return ValidationRecord(checkpoints={"mean": Lowest(loss, step)}, **more)


def test_the_best_is_named_and_never_deleted(run_dir):
    retain(run_dir, by_mean(0.5, 1), 5, keep_last=2)
    assert steps(run_dir) == [1, 4, 5]
    assert best(run_dir) == {
        "format_version": "1",
        "checkpoint": "step-00000001",
        "global_step": 1,
        "rule": "mean",
        "loss": 0.5,
    }
    retain(run_dir, by_mean(0.4, 5), 5, keep_last=1)
    assert steps(run_dir) == [5]
    assert best(run_dir)["global_step"] == 5


def test_the_best_by_other_rules_is_named_with_its_number(run_dir):
    score = "evaluation/higher/pass_at_k.pass@1"
    lowest = {"mean": Lowest(0.5, 1), "worst": Lowest(0.9, 2), score: Lowest(-0.25, 3)}
    retain(run_dir, ValidationRecord(checkpoints=lowest, rule="worst"), 5, keep_last=0)
    assert (best(run_dir)["global_step"], best(run_dir)["rule"], best(run_dir)["ratio"]) == (2, "worst", 0.9)
    retain(run_dir, ValidationRecord(checkpoints=lowest, rule=score), 5, keep_last=1)
    assert best(run_dir)["metric"] == "pass_at_k.pass@1"
    assert best(run_dir)["value"] == 0.25
    assert steps(run_dir) == [3, 5]


def test_checkpoints_that_wait_for_their_evaluation_are_kept(run_dir):
    retain(run_dir, by_mean(0.5, 1, unevaluated=(2, 4)), 5, keep_last=1)
    assert steps(run_dir) == [1, 2, 4, 5]


def test_without_a_validated_checkpoint_there_is_no_best(run_dir):
    retain(run_dir, by_mean(0.5, 1), 5, keep_last=0)
    retain(run_dir, ValidationRecord(), 5, keep_last=0)
    assert steps(run_dir) == [1, 2, 3, 4, 5]
    assert not (run_dir / "checkpoints" / "best.json").exists()


def test_checkpoints_from_before_a_resume_do_not_count(run_dir):
    retain(run_dir, ValidationRecord(), 3, keep_last=1)
    assert steps(run_dir) == [3, 4, 5]
