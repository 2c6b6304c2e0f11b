"""The start of a run: it checks what it will do as it will do it, and runs no code of strangers."""

import errno
import fcntl
import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner

from mft_train.cli import main
from mft_train.model import segment_attention
from mft_train.running.run_lock import sole_run

SETTINGS = {"max_steps": 1, "global_batch_size": 4, "validation_interval": 0, "trackers": []}


@pytest.fixture
def config(write_run):
    return write_run(**SETTINGS)


def test_full_training_starts_with_an_attention_that_knows_half_precision_only(config, monkeypatch, other_precision):
    """Trained weights are float32 and computing is autocast; transformers then gives flash-attn what it asks for."""
    from transformers.integrations.flash_attention import get_target_dtype

    compute = segment_attention.segment_attention

    def halves_only(module, query, key, value, *args, **kwargs):
        dtype = get_target_dtype(query, module) or query.dtype
        if dtype == torch.float32:
            raise ValueError("attention only supports fp16 and bf16")
        return compute(module, query, key, value, *args, **kwargs)

    monkeypatch.setattr(segment_attention, "segment_attention", halves_only)
    result = CliRunner().invoke(main, ["launch", str(config), "method=full", "dtype=bfloat16"])
    monkeypatch.undo()
    segment_attention.register()
    assert result.exit_code == 0, result.stderr


@pytest.mark.parametrize("command", ["launch", "plan"])
def test_code_in_a_model_directory_is_not_run_whatever_is_typed(config, tmp_path, command):
    model = tmp_path / "remote"
    model.mkdir()
    auto_map = {"AutoConfig": "custom.Custom", "AutoModelForCausalLM": "custom.Custom"}
    (model / "config.json").write_text(json.dumps({"model_type": "custom", "auto_map": auto_map}))
    (model / "custom.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w').close()\n")
    line = [sys.executable, "-m", "mft_train", command, str(config), f"model={model}"]
    environment = os.environ | {"HF_HUB_OFFLINE": "1"}
    done = subprocess.run(line, input="y\ny\ny\n", capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 1
    assert "Error: " in done.stderr
    assert not (tmp_path / "ran").exists()


def test_a_run_with_a_closed_stdout_is_a_run(config, tmp_path):
    script = "from mft_train.cli import main; main()"
    command = ["bash", "-c", '"$@" >&-', "bash", sys.executable, "-c", script, "launch", str(config)]
    done = subprocess.run(command, stderr=subprocess.PIPE, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "run" / "final").is_dir()


def test_a_file_system_without_locks_is_said(tmp_path, monkeypatch, capsys):
    def no_locks(*_):
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(fcntl, "flock", no_locks)
    with sole_run(tmp_path):
        told = capsys.readouterr().err
    assert told == (
        f'the file system of output "{tmp_path}" has no locks (No locks available): nothing keeps a second run out\n'
    )


def environment(**variables):
    """This process's, with a launcher's variables and no others."""
    ours = {name: value for name, value in os.environ.items() if name not in ("RANK", "WORLD_SIZE", "LOCAL_RANK")}
    return ours | {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"} | variables


@pytest.mark.parametrize(
    ("variables", "message"),
    [
        ({"LOCAL_RANK": "0"}, "this process is started as one of several, but WORLD_SIZE is not set"),
        ({"ACCELERATE_USE_FSDP": "true"}, "accelerate asks for FSDP (ACCELERATE_USE_FSDP)"),
        (
            {"RANK": "0", "WORLD_SIZE": "2", "LOCAL_RANK": "0"},
            "this process is started as one of several, but LOCAL_WORLD_SIZE is not set",
        ),
    ],
)
def test_a_process_that_may_not_be_alone_does_not_train_alone(config, tmp_path, monkeypatch, variables, message):
    monkeypatch.delenv("LOCAL_WORLD_SIZE", raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    result = CliRunner().invoke(main, ["launch", str(config)])
    assert result.exit_code == 1
    assert message in result.stderr
    assert not (tmp_path / "run").exists()


@pytest.fixture
def on_two_machines(rank_server, tmp_path):
    """What two ranks say that end with an error, each the only one of its machine, in a folder of its own."""

    def on_two_machines(*arguments):
        folders = [str(tmp_path / f"machine-{rank}") for rank in range(2)]
        shared = {"WORLD_SIZE": "2", "LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": "1", "MASTER_ADDR": "127.0.0.1"}
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            shared["MASTER_PORT"] = str(probe.getsockname()[1])
        environments = [shared | {"RANK": str(rank)} for rank in range(2)]
        printed = tmp_path / "printed.txt"
        asked = {"folders": folders, "environments": environments}
        assert rank_server.run(2, printed, ["launch", *arguments], **asked) == [1, 1], printed.read_text()
        return printed.read_text()

    return on_two_machines


@pytest.mark.slow
def test_machines_that_do_not_share_the_output_are_found_at_the_start(config, tmp_path, on_two_machines):
    for rank in range(2):
        (tmp_path / f"machine-{rank}").mkdir()
    told = on_two_machines(config, "output=run")
    assert told.count('output "run" is not the same directory in rank 0 and in rank 1') == 2, told
    assert not (tmp_path / "machine-0" / "run").exists()


@pytest.mark.slow
@pytest.mark.parametrize("engine", [["ddp"], ["deepspeed", "stage=2"], ["fsdp"]])
def test_machines_with_different_bases_are_found_at_the_start(config, tmp_path, make_model, on_two_machines, engine):
    """Weights that each reads are not sent, so that each machine would train on its own, or all on a mixture."""
    for rank in range(2):
        make_model(tmp_path / f"machine-{rank}" / "base", initializer_range=0.1 + 0.1 * rank)
    chosen = [f"distributed.{setting}" for setting in (f"engine={engine[0]}", *engine[1:])]
    told = on_two_machines(config, "model=base", *chosen)
    assert told.count('model "base" is not the same on machine 0 and on machine 1') == 2, told
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_a_rank_without_the_files_gets_its_shares_from_rank_0(config, tmp_path, make_model, rank_server):
    """As on a machine of its own, which two ranks of one machine with other folders stand for."""
    folders = [str(tmp_path / f"folder-{rank}") for rank in range(2)]
    for folder in folders:
        make_model(Path(folder, "base"))
    chosen = ["method=full", "model=base", "distributed.engine=fsdp", "max_steps=1"]
    for output in ("read", "sent"):
        printed = tmp_path / f"{output}.txt"
        command = ["launch", config, f"output={tmp_path / output}", *chosen]
        assert rank_server.run(2, printed, command, folders=folders) == [0, 0], printed.read_text()
        Path(folders[1], "base", "model.safetensors").unlink(missing_ok=True)
    weights = [(tmp_path / name / "final" / "model.safetensors").read_bytes() for name in ("read", "sent")]
    assert weights[0] == weights[1]


@pytest.mark.slow
def test_weights_that_are_tied_by_the_config_alone_are_one_line(config, tmp_path, make_model, rank_server):
    from safetensors.torch import load_file, save_file

    base = make_model(tmp_path / "base", tie_word_embeddings=True)
    file = base / "model.safetensors"
    tensors = load_file(file)
    save_file(tensors | {"lm_head.weight": tensors["model.embed_tokens.weight"] + 1}, file, {"format": "pt"})
    printed = tmp_path / "printed.txt"
    command = ["launch", config, f"model={base}", "method=full", "distributed.engine=fsdp"]
    assert rank_server.run(2, printed, command) == [1, 1]
    assert printed.read_text().count("ties weights by its config.json, its files hold different ones") == 2
