"""What a resume may change, may change by force, may change with a word, and may not."""

import json
import shutil

import pytest
from click.testing import CliRunner

from mft_train.checkpoint.fingerprint import FIXED, TOLD, changed_settings, fingerprint, forgets_balance
from mft_train.cli import main
from mft_train.config.config import RunConfig
from mft_train.errors import TrainError
from mft_train.model.base_weights import base_identity
from mft_train.model.compute import Compute
from mft_train.rows.dataset_dir import open_dataset

pytestmark = pytest.mark.whole

SETTINGS = {"max_steps": 2, "global_batch_size": 4, "validation_interval": 0, "trackers": []}


@pytest.fixture
def launch(write_run):
    path = write_run(**SETTINGS)

    def launch(*overrides):
        return CliRunner().invoke(main, ["launch", str(path), *overrides])

    assert launch().exit_code == 0
    return launch


def refusal(launch, *overrides):
    """The one line of a resume that is refused."""
    result = launch("--resume", *overrides)
    assert result.exit_code == 1
    (line,) = [line for line in result.stderr.splitlines() if line.startswith("Error: ")]
    return line


@pytest.mark.parametrize(
    ("override", "told"),
    [
        ("lora.rank=8", "lora.rank is 8, the checkpoint was made with 16"),
        (
            "lora.target_modules=[k_proj]",
            "lora.target_modules is ['k_proj'], the checkpoint was",
        ),
        ("method=full", "method is 'full', the checkpoint was made with 'lora'"),
    ],
)
def test_what_the_weights_depend_on_can_not_be_changed(launch, tmp_path, override, told):
    for force in ([], ["--force"]):
        line = refusal(launch, override, *force)
        assert told in line
        assert "delete" not in line
        assert "--force" not in line
    assert (tmp_path / "run" / "checkpoints" / "step-00000002").is_dir()


def test_another_base_of_the_same_shape_is_refused_by_name(launch, tmp_path, tiny_model):
    from safetensors.torch import load_file, save_file

    copy = shutil.copytree(tiny_model, tmp_path / "copy")
    assert launch("--resume", f"model={copy}").exit_code == 0, "the same base, elsewhere"
    weights = load_file(copy / "model.safetensors")
    weights["model.norm.weight"] += 1
    save_file(weights, copy / "model.safetensors", metadata={"format": "pt"})
    line = refusal(launch, f"model={copy}", "--force")
    assert f"the model is another ({base_identity(str(copy))}) than the checkpoint was made with" in line


@pytest.mark.parametrize(
    "override",
    [
        "lora.alpha=64.0",
        "lora.dropout=0.5",
        "dtype=bfloat16",
        "loss.reduction=token_mean",
        "loss.task_weights={large: 2.0}",
        "learning_rate=0.5",
        "schedule=constant",
        "weight_decay=0.5",
        "max_grad_norm=0.5",
    ],
)
def test_what_makes_another_run_needs_force(launch, override, other_precision):
    name = override.partition("=")[0]
    assert f"{name} is" in (line := refusal(launch, override))
    assert "or use --force" in line
    forced = launch("--resume", "--force", override, "max_steps=3")
    assert forced.exit_code == 0, forced.stderr
    assert f"--force: {name} is" in forced.stderr


def test_a_run_can_be_made_longer_and_says_so(launch):
    result = launch("--resume", "max_steps=3")
    assert result.exit_code == 0, result.stderr
    assert "max_steps is 3, the checkpoint was made with 2\n" in result.stderr
    assert "the checkpoint has done 3 steps, this run has 2" in refusal(launch)


def test_a_forced_decay_is_the_one_that_is_used(launch, tmp_path):
    weights = []
    start = tmp_path / "start"
    shutil.copytree(tmp_path / "run", start)
    for decay in (0.25, 0.25, 0.5):
        shutil.rmtree(tmp_path / "run")
        shutil.copytree(start, tmp_path / "run")
        assert launch("--resume", "--force", f"weight_decay={decay}", "max_steps=3").exit_code == 0
        weights.append((tmp_path / "run" / "final" / "adapter_model.safetensors").read_bytes())
    assert weights[0] == weights[1] != weights[2]


@pytest.mark.parametrize("change", ["missing", "unexpected", "shape"])
def test_an_adapter_that_does_not_fit_is_refused_by_tensor(launch, tmp_path, change):
    from safetensors.torch import load_file, save_file

    path = tmp_path / "run" / "checkpoints" / "step-00000002" / "model" / "adapter_model.safetensors"
    tensors = load_file(path)
    name = min(tensors)
    tensor = tensors.pop(name)
    if change != "missing":
        tensors[f"{name}.more" if change == "unexpected" else name] = tensor[:1].clone()
    if change == "unexpected":
        tensors[name] = tensor
    save_file(tensors, path)
    run_json = path.parents[1] / "state" / "run.json"
    document = json.loads(run_json.read_text())
    document["files"]["model/adapter_model.safetensors"] = path.stat().st_size
    run_json.write_text(json.dumps(document))
    line = refusal(launch)
    assert f'the adapter does not fit: "{name}' in line
    assert str(path) in line


def config(**settings):
    values = {"model": "m", "dataset": "d", "output": "o", "max_steps": 2}
    return RunConfig(**values | settings)


@pytest.fixture
def make(tiny_dataset):
    dataset = open_dataset(str(tiny_dataset))
    return lambda **settings: fingerprint(config(**settings), Compute(None, "float32", "segments", False), dataset, "b")


def changes(saved, current, tmp_path, *, is_forced=False):
    return changed_settings(saved, current, tmp_path, is_forced=is_forced, is_talking=False)


def test_every_name_of_the_table_is_a_setting(make):
    assert set(FIXED) | set(TOLD) <= make(method="qlora").keys()


def test_nothing_changed_is_nothing_to_say(make, tmp_path):
    for settings in ({}, {"method": "full"}, {"loss": {"balancer": "coba"}}):
        assert changes(make(**settings), json.loads(json.dumps(make(**settings))), tmp_path) == set()


def test_where_a_choice_differs_what_depends_on_it_is_not_named(make, tmp_path):
    changed = changes(make(), make(loss={"balancer": "coba"}), tmp_path, is_forced=True)
    assert changed == {"loss.balancer"}
    with pytest.raises(TrainError, match=r"^method is 'full', the checkpoint was made with 'lora', in "):
        changes(make(), make(method="full"), tmp_path, is_forced=True)


def test_a_setting_of_another_version_is_named(make, tmp_path):
    older = {name: value for name, value in make().items() if name != "schedule"}
    with pytest.raises(TrainError, match="schedule is 'cosine', the checkpoint was made with None"):
        changes(older, make(), tmp_path)


def test_the_memory_of_a_balancer_goes_with_its_settings(make, tmp_path):
    coba = make(loss={"balancer": "coba"})
    for settings, forgets in (
        ({"loss": {"balancer": "coba", "coba": {"tau": 2.0}}}, True),
        ({"loss": {"balancer": "famo"}}, True),
        ({"loss": {"balancer": "coba"}, "mixture": {"large": 1.0, "small": 2.0}}, True),
        ({"loss": {"balancer": "coba"}, "learning_rate": 1.0}, False),
    ):
        assert forgets_balance(changes(coba, make(**settings), tmp_path, is_forced=True)) is forgets


def test_an_index_names_the_weights_and_a_missing_one_is_an_error(tmp_path, tiny_model):
    whole = base_identity(str(tiny_model))
    copy = shutil.copytree(tiny_model, tmp_path / "copy")
    (copy / "notes.txt").write_text("not weights")
    assert base_identity(str(copy)) == whole
    (copy / "model.safetensors").rename(copy / "model-1.safetensors")
    index = {"weight_map": {"a": "model-1.safetensors", "b": "model-1.safetensors"}}
    (copy / "model.safetensors.index.json").write_text(json.dumps(index))
    assert base_identity(str(copy)) not in (whole, "")
    (copy / "model-1.safetensors").unlink()
    with pytest.raises(TrainError, match='the model has no "model-1'):
        base_identity(str(copy))
    (copy / "model.safetensors.index.json").unlink()
    with pytest.raises(TrainError, match="the model has no weights"):
        base_identity(str(copy))


def test_other_validation_rows_go_on_by_force_with_a_new_record_of_validations(launch, tmp_path):
    run = tmp_path / "run" / "checkpoints" / "step-00000002" / "state" / "run.json"
    first = json.loads(run.read_text())["validation"]
    assert "validation_rows is 1, the checkpoint was made with None" in refusal(launch, "validation_rows=1")
    result = launch("--resume", "--force", "validation_rows=1", "max_steps=3")
    assert result.exit_code == 0, result.stderr
    events = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    last = [event for event in events if event["event"] == "validation"][-1]
    state = tmp_path / "run" / "checkpoints" / "step-00000003" / "state" / "run.json"
    best = json.loads(state.read_text())["validation"]["seen"]["mean"]["value"]
    assert best == last["loss"] != first["seen"]["mean"]["value"]
