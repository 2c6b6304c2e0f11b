"""Whole runs of the real command on a tiny model: artifacts, resume, several processes, bad input."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from click.testing import CliRunner

from mft_train.cli import main

SETTINGS = {"max_steps": 10, "global_batch_size": 4, "learning_rate": 0.01, "validation_interval": 5}


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
    return [{name: value for name, value in line.items() if name != "tokens_per_second"} for line in lines]


def test_a_lora_run_leaves_every_artifact_and_learns(config, tmp_path, tiny_dataset):
    result = launch(config(checkpoint_interval=5, max_steps=30))
    run_dir = tmp_path / "run"
    assert result.exit_code == 0, result.stderr
    assert result.stdout == f"{run_dir / 'final'}\n"
    tokenizer_files = {path.name for path in (tiny_dataset / "tokenizer").iterdir()}
    adapter_files = {"adapter_config.json", "adapter_model.safetensors"}
    assert {path.name for path in (run_dir / "final").iterdir()} == adapter_files | tokenizer_files
    assert sorted(path.name for path in (run_dir / "checkpoints").iterdir())[0] == "step-00000005"
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


@pytest.mark.parametrize("method", ["lora", "full"])
def test_resume_continues_bit_for_bit(config, tmp_path, method):
    path = config(method=method, checkpoint_interval=5, lora={"dropout": 0.1})
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


def test_resume_with_other_data_is_refused(config, tmp_path, make_dataset):
    assert launch(config(checkpoint_interval=5, max_steps=5)).exit_code == 0
    other = make_dataset(tmp_path / "other", {"large": (9, 2), "small": (6, 2)})
    result = launch(config(checkpoint_interval=5), f"dataset={other}", "--resume")
    assert result.exit_code == 1
    assert "the checkpoint was made with" in result.stderr


def test_two_processes_give_the_loss_curve_of_one(config, tmp_path):
    # Two epochs and a half of 29 rows: the ends of epochs, where ranks are uneven, are part of the curve.
    path = config(max_steps=20)
    assert launch(path).exit_code == 0
    two = tmp_path / "two"
    command = [sys.executable, "-m", "mft_train", "launch", str(path), f"output={two}", "--processes", "2"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout == f"{two / 'final'}\n"
    for kind in ("train", "validation"):
        for one, other in zip(events(tmp_path / "run", kind), events(two, kind), strict=True):
            assert other["loss"] == pytest.approx(one["loss"], rel=1e-5)
            assert other["task_losses"] == pytest.approx(one["task_losses"], rel=1e-5)
            if kind == "train":
                assert other["grad_norm"] == pytest.approx(one["grad_norm"], rel=1e-4)
                assert other["supervised_tokens"] == one["supervised_tokens"]


def test_the_run_directory_is_refused_when_not_empty_and_replaced_on_demand(config, tmp_path):
    path = config(max_steps=1)
    assert launch(path).exit_code == 0
    result = launch(path)
    assert result.exit_code == 1
    assert "is not empty" in result.stderr
    assert launch(path, "--overwrite").exit_code == 0
    assert len(events(tmp_path / "run", "train")) == 1
    (tmp_path / "precious").mkdir()
    (tmp_path / "precious" / "file").write_text("keep me")
    result = launch(path, f"output={tmp_path / 'precious'}", "--overwrite")
    assert result.exit_code == 1
    assert (tmp_path / "precious" / "file").read_text() == "keep me"


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
        (["mixture={large: 1}"], 'mixture leaves out task "small"'),
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


def test_an_architecture_that_attention_by_segment_cannot_run_is_refused(config, tmp_path):
    from transformers import Gemma2Config, Gemma2ForCausalLM

    shape = {"vocab_size": 97, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "head_dim": 8}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2}
    Gemma2ForCausalLM(Gemma2Config(**shape, **heads)).save_pretrained(tmp_path / "gemma")
    result = launch(config(), f"model={tmp_path / 'gemma'}")
    assert result.exit_code == 1
    assert "packed rows cannot be trained" in result.stderr
