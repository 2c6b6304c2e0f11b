import json
import shutil

import pytest
import torch
import yaml
from click.testing import CliRunner
from torch import nn

from mft_train.cli import main
from mft_train.config.config import RunConfig
from mft_train.errors import TrainError
from mft_train.model.compiled_layers import check_compile, compile_layers
from mft_train.model.compute import settle_compute

CPU = torch.device("cpu")
needs_compiler = pytest.mark.skipif(
    not any(shutil.which(name) for name in ("c++", "g++", "clang++")), reason="needs a C++ compiler"
)


def config(**settings):
    return RunConfig(model="m", dataset="d", output="o", max_steps=1, **settings)


@pytest.mark.slow
@needs_compiler
def test_compiled_layers_train_the_same_curve_and_leave_the_same_names(make_model, tiny_dataset, tmp_path):
    from safetensors.torch import load_file
    from transformers import AutoModelForCausalLM

    model = make_model(tmp_path / "one-layer", num_hidden_layers=1)
    path = tmp_path / "run.yaml"
    values = {"model": str(model), "dataset": str(tiny_dataset), "method": "full", "attention": "sdpa"}
    values |= {"max_steps": 4, "global_batch_size": 4, "learning_rate": 0.01, "checkpoint_interval": 2}
    losses, weights = [], []
    for is_compiled in (False, True):
        run_dir = tmp_path / f"run-{is_compiled}"
        path.write_text(yaml.safe_dump(values | {"output": str(run_dir), "compile": is_compiled}))
        result = CliRunner().invoke(main, ["launch", str(path)])
        assert result.exit_code == 0, result.stderr
        lines = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
        losses.append([line["loss"] for line in lines if line["event"] in ("train", "validation")])
        weights.append(load_file(run_dir / "final" / "model.safetensors"))
        AutoModelForCausalLM.from_pretrained(run_dir / "checkpoints" / "step-00000002" / "model")
    assert losses[1] == pytest.approx(losses[0], rel=1e-5)
    assert losses[1] != losses[0], "the same bits: nothing was compiled"
    assert weights[0].keys() == weights[1].keys()
    for name, weight in weights[0].items():
        assert torch.allclose(weights[1][name], weight, atol=1e-3), name


def check(config):
    check_compile(config, settle_compute(config, CPU))


@needs_compiler
def test_layers_that_would_not_be_compiled_are_refused():
    check(config(compile=True))
    check(config(compile=True, gradient_checkpointing=True, attention="sdpa"))
    check(config(gradient_checkpointing=True))
    with pytest.raises(TrainError, match="compile has no effect on recomputed layers with attention segments, set"):
        check(config(compile=True, gradient_checkpointing=True))
    with pytest.raises(TrainError, match="compile finds no decoder layers in this model, set compile: false"):
        compile_layers(nn.Linear(2, 2))


def test_a_machine_without_a_compiler_is_told_apart(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CXX", raising=False)
    check(config())
    with pytest.raises(TrainError, match=r"compile needs a C\+\+ compiler, none is found, install g\+\+, or set comp"):
        check(config(compile=True))
