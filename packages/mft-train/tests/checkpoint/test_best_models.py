import json
import shutil

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mft_train.checkpoint.best_models import MAX_NAME_BYTES, candidates, folder_name, keep_best_models, kept_tasks
from mft_train.checkpoint.validation_record import Lowest, ValidationRecord
from mft_train.config.config import RunConfig
from mft_train.rows.dataset_dir import open_dataset


@pytest.fixture
def run_dir(tmp_path):
    """A run directory with checkpoints after 1 to 3 steps."""
    for step in range(1, 4):
        model = tmp_path / "checkpoints" / f"step-{step:08d}" / "model"
        model.mkdir(parents=True)
        (model / "adapter_model.safetensors").write_bytes(b"%d" % step)
    return tmp_path


def record(**tasks):
    return ValidationRecord(checkpoints={f"task/{task}": Lowest(*lowest) for task, lowest in tasks.items()})


def kept(run_dir):
    return {path.name: (path / "adapter_model.safetensors").read_bytes() for path in (run_dir / "best").iterdir()}


def test_every_task_has_the_model_of_its_own_best_checkpoint(run_dir):
    keep_best_models(run_dir, record(sql=(0.5, 1), java=(0.7, 3), docs=(0.9, 2)), ["sql", "java"])
    assert kept(run_dir) == {"sql": b"1", "java": b"3"}
    assert json.loads((run_dir / "best" / "java" / "best.json").read_text()) == {
        "format_version": "1",
        "task": "java",
        "checkpoint": "step-00000003",
        "global_step": 3,
        "loss": 0.7,
    }
    # It outlives its checkpoint, of which it is a second name.
    weights = run_dir / "checkpoints" / "step-00000001" / "model" / "adapter_model.safetensors"
    assert weights.samefile(run_dir / "best" / "sql" / weights.name)
    shutil.rmtree(run_dir / "checkpoints" / "step-00000001")
    keep_best_models(run_dir, record(sql=(0.5, 1), java=(0.6, 2)), ["sql", "java"])
    assert kept(run_dir) == {"sql": b"1", "java": b"2"}


def test_a_folder_of_another_loss_of_that_step_is_replaced(run_dir):
    keep_best_models(run_dir, record(sql=(0.5, 1)), ["sql"])
    (run_dir / "checkpoints" / "step-00000001" / "model" / "adapter_model.safetensors").unlink()
    (run_dir / "checkpoints" / "step-00000001" / "model" / "adapter_model.safetensors").write_bytes(b"new")
    keep_best_models(run_dir, record(sql=(0.5, 1)), ["sql"])
    assert kept(run_dir) == {"sql": b"1"}
    keep_best_models(run_dir, record(sql=(0.4, 1)), ["sql"])
    assert kept(run_dir) == {"sql": b"new"}


@given(st.text(max_size=300))
def test_a_folder_name_is_one_folder_below_best(task):
    name = folder_name(task)
    assert 0 < len(name.encode()) <= MAX_NAME_BYTES
    assert "/" not in name
    assert "\0" not in name
    assert name[0] not in ". -"
    assert name[-1] not in ". "
    assert name not in ("best", "model", "best.json") or name == task != "model"


@given(st.text(max_size=40), st.text(max_size=40))
def test_two_tasks_never_share_a_folder(one, other):
    assert (folder_name(one) == folder_name(other)) == (one == other)


@pytest.mark.parametrize(
    ("task", "name"),
    [
        ("code-completion", "code-completion"),
        ("c++", "c++"),
        ("v1.2_x", "v1.2_x"),
        ("日本語", "日本語"),
        ("text to sql", "text to sql"),
        ("model", "%6Dodel"),
        ("..", "%2E%2E"),
        (".hidden", "%2Ehidden"),
        ("a/b", "a%2Fb"),
        ("50%", "50%25"),
        ("", "%"),
    ],
)
def test_awkward_names_are_made_safe_and_plain_ones_left_alone(task, name):
    assert folder_name(task) == name


def test_long_names_that_begin_alike_are_told_apart():
    assert folder_name("x" * 250 + "a") != folder_name("x" * 250 + "b")


def settings(**values):
    return RunConfig.model_validate({"model": "m", "dataset": "d", "output": "o", "max_steps": 9} | values)


def test_full_models_are_kept_if_they_fit_into_half_of_the_disk_or_by_name(tiny_dataset, tmp_path):
    dataset = open_dataset(str(tiny_dataset))
    free = shutil.disk_usage(tmp_path).free
    both = ["large", "small"]
    assert kept_tasks(settings(), dataset, free, tmp_path) == both
    assert kept_tasks(settings(method="full"), dataset, free // 5, tmp_path) == both
    assert kept_tasks(settings(method="full"), dataset, free // 2, tmp_path) == []
    assert kept_tasks(settings(method="full", best_of_tasks=True), dataset, free, tmp_path) == both
    assert kept_tasks(settings(method="full", best_of_tasks=["small"]), dataset, free, tmp_path) == ["small"]
    assert candidates(settings(best_of_tasks=False), dataset) == []
