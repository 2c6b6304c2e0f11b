"""Whole runs of two processes under every engine: the curve of one, exact resumes, checkpoints that fit any engine."""

import json
import shutil
import subprocess
import sys

import pytest
from click.testing import CliRunner

from mft_train.cli import main

SETTINGS = {
    "max_steps": 8,
    "global_batch_size": 4,
    "learning_rate": 0.01,
    "validation_interval": 4,
    "checkpoint_interval": 4,
    "loss": {"balancer": "coba", "probe_rows": 3, "coba": {"warmup_updates": 2, "history_length": 3}},
    "trackers": [],
}
MEASURED = {"tokens_per_second", "peak_memory_bytes"}


@pytest.fixture
def config(write_run):
    return lambda method: write_run(**SETTINGS, method=method)


def two(path, output, *arguments):
    """A run of two processes."""
    command = [sys.executable, "-m", "mft_train", "launch", str(path), f"output={output}", "--processes", "2"]
    done = subprocess.run([*command, *arguments], capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr


def one(path, output, *arguments):
    """A run of this process."""
    result = CliRunner().invoke(main, ["launch", str(path), f"output={output}", *arguments])
    assert result.exit_code == 0, result.stderr


def events(run_dir, kind):
    lines = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in line.items() if k not in MEASURED} for line in lines if line["event"] == kind]


def weights(run_dir):
    return {path.name: path.read_bytes() for path in (run_dir / "final").glob("*.safetensors")}


def forget_the_second_half(run_dir):
    shutil.rmtree(run_dir / "final")
    shutil.rmtree(run_dir / "checkpoints" / "step-00000008")


def assert_same_curve(run_dir, other):
    for kind in ("train", "validation"):
        for left, right in zip(events(run_dir, kind), events(other, kind), strict=True):
            assert right["loss"] == pytest.approx(left["loss"], rel=1e-5)
            assert right["task_losses"] == pytest.approx(left["task_losses"], rel=1e-5)
            if kind == "train":
                assert right["grad_norm"] == pytest.approx(left["grad_norm"], rel=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("method", ["lora", "full"])
@pytest.mark.parametrize("engine", ["fsdp", "deepspeed-1", "deepspeed-2", "deepspeed-3"])
def test_an_engine_trains_the_curve_of_one_process_and_resumes_anywhere(config, tmp_path, tiny_model, method, engine):
    path, whole, sharded = config(method), tmp_path / "whole", tmp_path / "sharded"
    chosen = settings(engine)
    one(path, whole)
    two(path, sharded, *chosen)
    assert_same_curve(whole, sharded)
    curve, final = events(sharded, "train"), weights(sharded)

    forget_the_second_half(sharded)
    two(path, sharded, *chosen, "--resume")
    assert events(sharded, "train") == curve, "a resume is bit for bit"
    assert weights(sharded) == final

    forget_the_second_half(sharded)
    one(path, sharded, "--resume")
    assert_same_curve(whole, sharded)
    forget_the_second_half(whole)
    two(path, whole, *chosen, "--resume")
    assert_same_curve(sharded, whole)
    assert_loads(whole / "final", tiny_model, method)


def settings(engine):
    """Overrides that choose an engine, of DeepSpeed with its stage."""
    name, _, stage = engine.partition("-")
    return [f"distributed.engine={name}", *([f"distributed.stage={stage}"] if stage else [])]


def assert_loads(final, base_model, method):
    """What a run leaves is what anyone else reads, and no tensor of it is empty."""
    from safetensors.torch import load_file
    from transformers import AutoModelForCausalLM

    tensors = {name: tensor for file in final.glob("*.safetensors") for name, tensor in load_file(file).items()}
    assert tensors
    assert all(tensor.numel() for tensor in tensors.values())
    if method == "lora":
        from peft import PeftModel

        base = AutoModelForCausalLM.from_pretrained(base_model)
        loaded = PeftModel.from_pretrained(base, final).state_dict()
        assert {name.replace(".default.", ".") for name in loaded if "lora_" in name} == tensors.keys()
    else:
        model, found = AutoModelForCausalLM.from_pretrained(final, output_loading_info=True)
        assert not found["missing_keys"]
        assert model.num_parameters() == AutoModelForCausalLM.from_pretrained(base_model).num_parameters()


@pytest.mark.slow
def test_fsdp_runs_with_larger_batches_recomputing_and_layers_that_stay_whole(config, tmp_path):
    path, whole = config("full"), tmp_path / "whole"
    one(path, whole, "max_steps=2")
    for name, settings in (
        ("sharded", ["micro_batch_size=2"]),
        ("recomputed", ["gradient_checkpointing=true", "distributed.reshard_after_forward=false"]),
    ):
        two(path, tmp_path / name, "max_steps=2", "distributed.engine=fsdp", *settings)
        assert_same_curve(whole, tmp_path / name)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["distributed.engine=fsdp"], "distributed.engine fsdp shares weights between processes, there is one"),
        (["distributed.engine=fsdp", "optimizer=adamw_8bit", "--processes", "2"], "adamw_8bit knows no shared weights"),
        (["distributed.engine=fsdp", "compile=true", "--processes", "2"], "compile is not tested with fsdp"),
        (["distributed.reshard_after_forward=false"], "reshard_after_forward has no effect with engine auto"),
    ],
)
def test_settings_that_an_engine_cannot_run_are_one_line(config, tmp_path, overrides, message):
    path = config("lora")
    result = CliRunner().invoke(main, ["launch", str(path), f"output={tmp_path / 'run'}", *overrides])
    assert result.exit_code == 1
    (line,) = [line for line in result.stderr.splitlines() if line.startswith("Error: ")]
    assert message in line
    assert not (tmp_path / "run").exists()
