"""Whole runs of the real command on a tiny model: artifacts, resume, several processes, bad input."""

import json
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from click.testing import CliRunner

from mft_train.cli import main

SETTINGS = {"max_steps": 10, "global_batch_size": 4, "learning_rate": 0.01, "validation_interval": 5, "keep_last": 0}


@pytest.fixture
def config(tiny_model, tiny_dataset, tmp_path):
    def config(**settings):
        values = {"model": str(tiny_model), "dataset": str(tiny_dataset), "output": str(tmp_path / "run")}
        path = tmp_path / "run.yaml"
        path.write_text(yaml.safe_dump(values | SETTINGS | settings))
        return path

    return config


def launch(*arguments):
    return CliRunner().invoke(main, ["launch", *map(str, arguments)])


def events(run_dir, kind=None):
    lines = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    return [line for line in lines if kind in (None, line["event"])]


def without_rate(lines):
    measured = {"tokens_per_second", "peak_memory_bytes"}
    return [{name: value for name, value in line.items() if name not in measured} for line in lines]


def test_a_lora_run_leaves_every_artifact_and_learns(config, tmp_path, tiny_dataset):
    result = launch(config(checkpoint_interval=5, max_steps=30))
    run_dir = tmp_path / "run"
    assert result.exit_code == 0, result.stderr
    assert result.stdout == f"{run_dir / 'final'}\n"
    tokenizer_files = {path.name for path in (tiny_dataset / "tokenizer").iterdir()}
    adapter_files = {"adapter_config.json", "adapter_model.safetensors", "base_model.json"}
    assert {path.name for path in (run_dir / "final").iterdir()} == adapter_files | tokenizer_files
    names = sorted(path.name for path in (run_dir / "checkpoints").iterdir())
    assert names == ["best.json", *(f"step-{step:08d}" for step in range(5, 31, 5))]
    assert yaml.safe_load((run_dir / "config.yaml").read_text())["max_steps"] == 30
    assert [line["global_step"] for line in events(run_dir, "train")] == list(range(1, 31))
    assert [line["global_step"] for line in events(run_dir, "validation")] == [0, 5, 10, 15, 20, 25, 30]
    losses = [line["loss"] for line in events(run_dir, "train")]
    assert sum(losses[-5:]) < sum(losses[:5])
    for name in ("chat_template.jinja", "tokenizer.json"):
        assert (run_dir / "final" / name).read_bytes() == (tiny_dataset / "tokenizer" / name).read_bytes()


def test_a_full_run_ends_in_a_plain_model(config, tmp_path):
    from transformers import AutoModelForCausalLM

    result = launch(config(method="full", max_steps=2))
    assert result.exit_code == 0, result.stderr
    saved = json.loads((tmp_path / "run" / "final" / "config.json").read_text())
    assert "segments" not in json.dumps(saved)
    AutoModelForCausalLM.from_pretrained(tmp_path / "run" / "final")


COBA = {"balancer": "coba", "balancer_interval": 1, "coba": {"warmup_updates": 1, "history_length": 3}}


@pytest.mark.parametrize(
    ("method", "loss"),
    [("lora", {}), ("full", {}), ("lora", COBA), ("lora", {"balancer": "famo", "balancer_interval": 2})],
)
def test_resume_continues_bit_for_bit(config, tmp_path, method, loss):
    path = config(method=method, checkpoint_interval=5, lora={"dropout": 0.1}, loss=loss)
    assert launch(path).exit_code == 0
    run_dir = tmp_path / "run"
    whole, final = events(run_dir, "train"), weights(run_dir / "final")
    shutil.rmtree(run_dir / "final")
    shutil.rmtree(run_dir / "checkpoints" / "step-00000010")
    result = launch(path, "--resume")
    assert result.exit_code == 0, result.stderr
    assert events(run_dir, "resume") == [{"event": "resume", "global_step": 5, "checkpoint": "step-00000005"}]
    assert without_rate(events(run_dir, "train")) == without_rate(whole)
    assert [line["global_step"] for line in events(run_dir, "validation")] == [0, 5, 10]
    assert weights(run_dir / "final") == final


def weights(directory):
    return {path.name: path.read_bytes() for path in directory.glob("*.safetensors")}


@pytest.mark.parametrize("balancer", ["self_paced", "coba", "famo", "focal"])
def test_a_balancer_moves_the_weights_and_leaves_the_training_rows_and_the_dropout_alone(config, tmp_path, balancer):
    # With a floor next to 1 the weights stay equal: whatever else differed would come from the probe.
    plain = config(max_steps=5, lora={"dropout": 0.1})
    assert launch(plain).exit_code == 0
    sections = {"self_paced": {"history_length": 2}, "coba": {"warmup_updates": 2}}
    loss = {"balancer": balancer, "balancer_interval": 1, "probe_tasks": None, balancer: sections.get(balancer, {})}
    balanced = config(max_steps=5, lora={"dropout": 0.1}, loss=loss | {"weight_floor": 1 - 1e-12}, output="unused")
    assert launch(balanced, f"output={tmp_path / 'equal'}").exit_code == 0
    assert launch(balanced, f"output={tmp_path / 'moved'}", "loss.weight_floor=0.1").exit_code == 0
    one, equal, moved = (events(tmp_path / name, "train") for name in ("run", "equal", "moved"))
    for line, same in zip(one, equal, strict=True):
        assert same["loss"] == pytest.approx(line["loss"], rel=1e-6)
        assert same["grad_norm"] == pytest.approx(line["grad_norm"], rel=1e-5)
    weights_at_end = moved[-1]["task_weights"]
    assert sum(weights_at_end.values()) == pytest.approx(2)
    assert abs(weights_at_end["large"] - 1) > 1e-4


def test_a_balancer_without_validation_rows_to_measure_is_refused(config, tmp_path, make_dataset):
    dataset = make_dataset(tmp_path / "blind", {"large": (9, 2), "small": (6, 0)})
    result = launch(config(dataset=str(dataset), loss=COBA))
    assert result.exit_code == 1
    assert 'task "small" has no validation rows, which balancer coba measures' in result.stderr
    assert not (tmp_path / "run").exists()


def test_resume_with_another_balancer_is_refused(config, tmp_path):
    assert launch(config(checkpoint_interval=1, max_steps=1)).exit_code == 0
    result = launch(config(loss=COBA), "--resume")
    assert result.exit_code == 1
    assert "balancer is 'coba', the checkpoint was made with 'static'" in result.stderr
    assert yaml.safe_load((tmp_path / "run" / "config.yaml").read_text())["loss"]["balancer"] == "static"


def test_resume_with_other_data_is_refused(config, tmp_path, make_dataset):
    assert launch(config(checkpoint_interval=5, max_steps=5)).exit_code == 0
    other = make_dataset(tmp_path / "other", {"large": (9, 2), "small": (6, 2)})
    result = launch(config(checkpoint_interval=5), f"dataset={other}", "--resume")
    assert result.exit_code == 1
    assert "the checkpoint was made with" in result.stderr


def assert_same_curve(one, other, kinds=("train", "validation")):
    """Two run directories have the same events, but for the rounding of float32."""
    for kind in kinds:
        for left, right in zip(events(one, kind), events(other, kind), strict=True):
            assert right["loss"] == pytest.approx(left["loss"], rel=1e-5)
            assert right["task_losses"] == pytest.approx(left["task_losses"], rel=1e-5)
            if kind == "train":
                assert right["task_weights"] == pytest.approx(left["task_weights"], rel=1e-3)
                assert right["grad_norm"] == pytest.approx(left["grad_norm"], rel=1e-4)
                assert right["supervised_tokens"] == left["supervised_tokens"]


def test_two_processes_give_the_loss_curve_of_one(config, tmp_path):
    # More than two epochs of 23 + 2 x 6 rows: the ends of epochs, where ranks are uneven, are part of the curve.
    path = config(max_steps=20, loss=COBA, repeats={"small": 2.0})
    assert launch(path).exit_code == 0
    two = tmp_path / "two"
    command = [sys.executable, "-m", "mft_train", "launch", str(path), f"output={two}", "--processes", "2"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout == f"{two / 'final'}\n"
    assert_same_curve(tmp_path / "run", two)


def test_two_processes_that_are_terminated_leave_a_checkpoint_for_one(config, tmp_path):
    # So many steps that the signal cannot come after the last.
    path = config(max_steps=5000, schedule="constant", learning_rate=0.001, validation_interval=0)
    two = tmp_path / "two"
    command = [sys.executable, "-m", "mft_train", "launch", str(path), f"output={two}", "--processes", "2"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        told = list(iter_until(process.stderr, "step 3/5000"))
        process.send_signal(signal.SIGTERM)
        stdout, rest = process.communicate(timeout=300)
    assert process.returncode == 143, "".join(told) + rest
    assert stdout == ""
    assert not (two / "final").exists()
    (stop,) = events(two, "interrupt")
    assert stop["signal"] == "SIGTERM"
    assert [path.name for path in (two / "checkpoints").glob("step-*")] == [f"step-{stop['global_step']:08d}"]
    until = f"max_steps={stop['global_step'] + 3}"
    result = launch(path, f"output={two}", until, "--resume")
    assert result.exit_code == 0, result.stderr
    assert launch(path, until).exit_code == 0
    assert_same_curve(tmp_path / "run", two)


def iter_until(lines, text):
    """The lines up to the first that contains `text`."""
    for line in lines:
        yield line
        if text in line:
            return


def test_an_interrupt_leaves_a_checkpoint_and_the_resume_is_exact(config, tmp_path):
    path = config(max_steps=60, validation_interval=20, lora={"dropout": 0.1}, loss=COBA)
    assert launch(path).exit_code == 0
    other = tmp_path / "other"

    def interrupt_after_some_steps(*_):
        if (other / "metrics.jsonl").is_file() and len((other / "metrics.jsonl").read_bytes().splitlines()) > 5:
            signal.setitimer(signal.ITIMER_REAL, 0)
            signal.raise_signal(signal.SIGINT)

    before = signal.getsignal(signal.SIGINT)
    previous = signal.signal(signal.SIGALRM, interrupt_after_some_steps)
    signal.setitimer(signal.ITIMER_REAL, 0.01, 0.01)
    try:
        result = launch(path, f"output={other}")
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, previous)
    assert result.exit_code == 130
    assert result.stdout == ""
    assert "SIGINT: a checkpoint is written after this step" in result.stderr
    assert signal.getsignal(signal.SIGINT) is before
    assert not (other / "final").exists()
    assert launch(path, f"output={other}", "--resume").exit_code == 0
    assert without_rate(events(other, "train")) == without_rate(events(tmp_path / "run", "train"))
    assert weights(other / "final") == weights(tmp_path / "run" / "final")


def test_a_run_that_gets_worse_stops_early_and_keeps_its_best_checkpoint(config, tmp_path):
    settings = {"learning_rate": 0.5, "max_grad_norm": 100.0, "validation_interval": 1, "checkpoint_interval": 1}
    path = config(**settings, early_stopping_patience=3, keep_last=1, schedule="constant", max_steps=50)
    assert launch(path).exit_code == 0
    run_dir = tmp_path / "run"
    (stop,) = events(run_dir, "early_stop")
    losses = [line["loss"] for line in events(run_dir, "validation")]
    assert stop["global_step"] == events(run_dir, "end")[0]["global_step"] == stop["best_step"] + 3 < 50
    assert stop["best_loss"] == losses[stop["best_step"]] == min(losses)
    best = json.loads((run_dir / "checkpoints" / "best.json").read_text())
    assert best["loss"] == min(losses[1:])
    kept = {path.name for path in (run_dir / "checkpoints").iterdir()}
    assert kept == {"best.json", best["checkpoint"], f"step-{stop['global_step']:08d}"}
    # A run that has stopped goes no further.
    shutil.rmtree(run_dir / "final")
    assert launch(path, "--resume").exit_code == 0
    assert len(events(run_dir, "train")) == stop["global_step"]
    assert (run_dir / "final").is_dir()


def test_a_damaged_checkpoint_is_skipped_with_a_message(config, tmp_path):
    path = config(checkpoint_interval=5)
    assert launch(path).exit_code == 0
    run_dir = tmp_path / "run"
    final = weights(run_dir / "final")
    optimizer = run_dir / "checkpoints" / "step-00000010" / "state" / "optimizer-0000.safetensors"
    optimizer.write_bytes(optimizer.read_bytes()[:100])
    result = launch(path, "--resume")
    assert result.exit_code == 0, result.stderr
    assert (
        "checkpoint step-00000010 is damaged and skipped: state/optimizer-0000.safetensors has 100 bytes"
        in result.stderr
    )
    assert events(run_dir, "resume")[0]["checkpoint"] == "step-00000005"
    assert weights(run_dir / "final") == final
    for name in ("step-00000005", "step-00000010"):
        content = bytearray((run_dir / "checkpoints" / name / "state" / "optimizer-0000.safetensors").read_bytes())
        content[:64] = bytes(64)
        (run_dir / "checkpoints" / name / "state" / "optimizer-0000.safetensors").write_bytes(content)
    result = launch(path, "--resume")
    assert result.exit_code == 1
    assert "the checkpoint cannot be loaded" in result.stderr
    for checkpoint in (run_dir / "checkpoints").glob("step-*"):
        (checkpoint / "state" / "run.json").write_text("{")
    result = launch(path, "--resume")
    assert result.exit_code == 1
    assert "no checkpoint is whole: state/run.json is damaged" in result.stderr


def test_resume_before_the_first_checkpoint_begins_anew_and_says_so(config, tmp_path):
    path = config(max_steps=1)
    assert launch(path).exit_code == 0
    shutil.rmtree(tmp_path / "run" / "checkpoints")
    result = launch(path, "--resume")
    assert result.exit_code == 0
    assert "no checkpoint yet" in result.stderr
    assert len(events(tmp_path / "run", "train")) == 1


def test_the_run_directory_is_refused_when_not_empty_and_replaced_on_demand(config, tmp_path):
    path = config(max_steps=1)
    assert launch(path).exit_code == 0
    result = launch(path)
    assert result.exit_code == 1
    assert "is not empty" in result.stderr
    assert launch(path, "--overwrite").exit_code == 0
    assert len(events(tmp_path / "run", "train")) == 1


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (None, "is not a run directory"),
        ("epochs: 3\n", "is not a run directory"),
        ("- mine\n", "the config is not a mapping"),
        ("model: m\ndataset: d\noutput: o\n", 'holds "file", which no run put there'),
    ],
)
def test_overwrite_deletes_runs_and_nothing_else(settings, message, config, tmp_path):
    precious = tmp_path / "precious"
    precious.mkdir()
    (precious / "file").write_text("keep me")
    if settings:
        (precious / "config.yaml").write_text(settings)
    result = launch(config(max_steps=1), f"output={precious}", "--overwrite")
    assert result.exit_code == 1
    assert message in result.stderr
    assert (precious / "file").read_text() == "keep me"


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["dataset=nowhere"], 'dataset "nowhere" is not a directory'),
        (["dataset=."], "the dataset has no manifest.json"),
        (["model=/nowhere"], 'model "/nowhere" is not a directory'),
        (["model=nowhere-at-all"], 'model "nowhere-at-all" cannot be loaded'),
        (["global_batch_size=3", "micro_batch_size=2"], "set it to 4"),
        (["lora.target_modules=[nothing]"], "no adapter can be made"),
        (["loss.task_weights={huge: 1}"], 'unknown task "huge", tasks: large, small'),
        (["mixture={large: 1}"], 'mixture does not say the proportion of task "small"'),
        (["attention=flash_attention_2"], "needs a CUDA device"),
        (["learning_rate=1e30", "method=full", "lora.rank=1"], "is not finite"),
    ],
)
def test_bad_input_is_one_line_and_leaves_no_final(config, tmp_path, overrides, message, monkeypatch):
    monkeypatch.chdir(tmp_path)
    result = launch(config(), *overrides)
    assert result.exit_code == 1
    error = [line for line in result.stderr.splitlines() if line.startswith("Error: ")]
    assert len(error) == 1
    assert message in error[0]
    assert result.stdout == ""
    assert not (tmp_path / "run" / "final").exists()


def test_a_model_with_too_few_embeddings_is_refused(config, tmp_path, tiny_dataset):
    dataset = Path(shutil.copytree(tiny_dataset, tmp_path / "dataset"))
    manifest = json.loads((dataset / "manifest.json").read_text())
    (dataset / "manifest.json").write_text(json.dumps(manifest | {"max_token_id": 97}))
    result = launch(config(), f"dataset={dataset}")
    assert result.exit_code == 1
    assert "token ids up to 97, the model has 97 embeddings" in result.stderr
