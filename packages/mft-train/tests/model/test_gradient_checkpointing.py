from dataclasses import replace

import numpy as np
import pytest
import torch
import yaml
from click.testing import CliRunner

from mft_train.cli import main
from mft_train.config.config import RunConfig
from mft_train.engine.start import start_engine
from mft_train.engine.world import read_world
from mft_train.model.compute import settle_compute
from mft_train.model.load import empty_model, load_model
from mft_train.planning.memory import estimate_memory, free_bytes, settle_checkpointing
from mft_train.planning.rehearsal import Counting
from mft_train.rows.dataset_dir import open_dataset
from mft_train.rows.packed_batch import Row, pack_rows

CPU = torch.device("cpu")


@pytest.fixture
def config(tiny_model, tiny_dataset):
    def config(**settings):
        values = {"model": str(tiny_model), "dataset": str(tiny_dataset), "output": "o", "max_steps": 1}
        return RunConfig(**values | settings)

    return config


def gradients(config, dataset):
    """The gradient of every trained parameter, and how often a layer ran."""
    torch.manual_seed(0)
    model = load_model(config, settle_compute(config, CPU), dataset).double()
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter)
    (layer,) = (module for name, module in model.named_modules() if name.endswith("layers.0.input_layernorm"))
    runs = []
    layer.register_forward_hook(lambda *_: runs.append(1))
    ids = np.random.default_rng(0).integers(0, 97, 20)
    batch = pack_rows([Row(ids, np.ones(20), np.array([12, 8]), 0)])
    torch.manual_seed(1)
    model(**batch.forward_keywords()).logits.square().mean().backward()
    return {name: parameter.grad for name, parameter in model.named_parameters() if parameter.requires_grad}, len(runs)


@pytest.mark.parametrize("settings", [{"method": "full"}, {"lora": {"dropout": 0.2}}])
def test_recomputed_gradients_are_the_same(config, tiny_dataset, settings):
    dataset = open_dataset(str(tiny_dataset))
    plain, runs = gradients(config(**settings), dataset)
    recomputed, recomputed_runs = gradients(config(gradient_checkpointing=True, **settings), dataset)
    assert (runs, recomputed_runs) == (1, 2)
    assert all(plain[name].abs().max() > 0 for name in plain)
    assert plain.keys() == recomputed.keys()
    for name in plain:
        assert torch.allclose(plain[name], recomputed[name], rtol=1e-10, atol=1e-12), name


def test_auto_recomputes_only_what_would_not_fit(config, tiny_dataset, capsys):
    dataset = open_dataset(str(tiny_dataset))
    auto = config(gradient_checkpointing="auto", micro_batch_size=8)
    compute = settle_compute(auto, CPU)
    need = estimate_memory(auto, compute, dataset, empty_model(auto), 1).total
    small = settle_checkpointing(auto, compute, dataset, 1, need, is_talking=True)
    assert small == replace(compute, gradient_checkpointing=True)
    large = settle_checkpointing(auto, compute, dataset, 1, 2 * need, is_talking=True)
    assert large.gradient_checkpointing is False
    on, off = capsys.readouterr().err.splitlines()
    assert (
        on == f"gradient checkpointing is on: {need / 2**20:.2f} MiB estimated without it, {need / 2**20:.2f} MiB free"
    )
    assert off.startswith("gradient checkpointing is off: ")
    assert estimate_memory(auto, small, dataset, empty_model(auto), 1).total < need


@pytest.mark.parametrize("choice", [True, False])
def test_a_choice_is_kept_whatever_is_free(config, tiny_dataset, capsys, choice):
    chosen = config(gradient_checkpointing=choice)
    compute = settle_compute(chosen, CPU)
    assert compute.gradient_checkpointing is choice
    for free in (0, 2**50):
        dataset = open_dataset(str(tiny_dataset))
        assert settle_checkpointing(chosen, compute, dataset, 1, free, is_talking=True) is compute
    assert capsys.readouterr().err == ""


def test_free_memory_of_the_cpu_is_shared_by_its_ranks():
    one, four = free_bytes(CPU, 1), free_bytes(CPU, 4)
    assert 2**20 < one < 2**50
    assert four == pytest.approx(one / 4, rel=0.2)


def test_a_run_says_what_it_decided(config, tmp_path):
    path = tmp_path / "run.yaml"
    settings = config(gradient_checkpointing="auto").model_dump() | {"output": str(tmp_path / "run")}
    path.write_text(yaml.safe_dump(settings))
    result = CliRunner().invoke(main, ["launch", str(path)])
    assert result.exit_code == 0, result.stderr
    assert sum(line.startswith("gradient checkpointing is off: ") for line in result.stderr.splitlines()) == 1
    assert yaml.safe_load((tmp_path / "run" / "config.yaml").read_text())["gradient_checkpointing"] is False
    for word in ("on", "maybe"):
        result = CliRunner().invoke(main, ["plan", str(path), f"gradient_checkpointing={word}"])
        assert ("gradient checkpointing on" in " ".join(result.stdout.split())) == (word == "on")
    assert "\"gradient_checkpointing\" is 'maybe': input should be True, False or 'auto'" in result.stderr


@pytest.mark.usefixtures("other_precision")
def test_a_forward_pass_that_is_made_again_keeps_no_copies_of_weights(config, make_model, tmp_path, tiny_dataset):
    base = make_model(tmp_path / "base", hidden_size=256, intermediate_size=704, num_hidden_layers=6)
    chosen = config(model=str(base), method="full", dtype="bfloat16", gradient_checkpointing=True)
    compute = settle_compute(chosen, CPU)
    accelerator = start_engine(chosen, read_world({}), compute).accelerator
    model = load_model(chosen, compute, open_dataset(str(tiny_dataset)))
    ids = np.arange(20)
    batch = pack_rows([Row(ids, np.ones(20), np.array([12, 8]), 0)])
    with Counting([*model.parameters(), *model.buffers()]) as counting:
        with accelerator.autocast():
            loss = model(**batch.forward_keywords()).logits.square().mean()
        copies = 2 * sum(parameter.numel() for parameter in model.parameters())
        assert counting.peak < copies / 3, "those of one layer and of what is none"
        loss.backward()
