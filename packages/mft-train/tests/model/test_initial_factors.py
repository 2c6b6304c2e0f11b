"""Adapters that begin as a part of the base's weight: saved, they are plain LoRA on the whole base."""

import pytest
import torch
from click.testing import CliRunner

from mft_train.checkpoint.checkpoint import load_adapter
from mft_train.checkpoint.weights import write_weights
from mft_train.cli import main
from mft_train.config.config import RunConfig
from mft_train.errors import TrainError
from mft_train.model.compute import settle_compute
from mft_train.model.initial_factors import take_from_base
from mft_train.model.load import load_model
from mft_train.rows.dataset_dir import open_dataset

PROMPT = torch.arange(5, 25)[None]


@pytest.fixture
def loaded(tiny_model, tiny_dataset):
    """The model of a config's adapter, without what the adapter takes from it."""

    def loaded(**lora):
        config = RunConfig(
            model=str(tiny_model), dataset=str(tiny_dataset), output="o", max_steps=1, lora={"rank": 4} | lora
        )
        compute = settle_compute(config, torch.device("cpu"))
        return load_model(config, compute, open_dataset(str(tiny_dataset))).eval()

    return loaded


def logits(model):
    with torch.no_grad():
        return model(PROMPT).logits


@pytest.mark.parametrize("extra", [{}, {"rslora": True}, {"dora": True}])
@pytest.mark.parametrize("init", ["pissa", "olora"])
def test_the_saved_adapter_is_the_trained_one_on_the_whole_base(loaded, tiny_model, tmp_path, init, extra):
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    model = loaded(init=init, **extra)
    plain = logits(model)
    weight = model.base_model.model.model.layers[0].mlp.up_proj.base_layer.weight
    whole = weight.clone()
    take_from_base(model, init)
    assert not torch.allclose(weight, whole, atol=1e-3)
    assert torch.allclose(logits(model), plain, atol=1e-5), "the adapter has what the base lost"
    trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in trained.values():
            parameter += 0.05 * torch.randn(parameter.shape, generator=generator)
    assert not torch.allclose(logits(model), plain, atol=1e-2)
    write_weights(model, {"adapter": {name: p.detach() for name, p in trained.items()}}, tmp_path)

    base = AutoModelForCausalLM.from_pretrained(tiny_model)
    saved = PeftModel.from_pretrained(base, tmp_path).eval()
    assert torch.allclose(logits(saved), logits(model), atol=5e-5), "but for the rounding of differences of factors"
    resumed = loaded(init=init, **extra)
    assert load_adapter(resumed, tmp_path, init)
    state = resumed.state_dict()
    assert all(value.equal(state[name]) for name, value in model.state_dict().items()), "bit for bit"


def test_a_rank_beyond_the_weights_is_refused_by_name(loaded):
    with pytest.raises(TrainError, match=r"lora\.rank 40 is above the 32 directions of"):
        take_from_base(loaded(init="pissa", rank=40), "pissa")


@pytest.mark.parametrize("init", ["gaussian", "orthogonal"])
def test_other_initialisations_leave_the_base_and_its_outputs_alone(loaded, init):
    model = loaded(init=init)
    before = logits(model)
    take_from_base(model, init)
    with model.disable_adapter():
        assert torch.allclose(logits(model), before, atol=1e-5)
    factors = [p for name, p in model.named_parameters() if "lora_A" in name]
    other = [p for name, p in loaded().named_parameters() if "lora_A" in name]
    assert not any(mine.equal(theirs) for mine, theirs in zip(factors, other, strict=True))


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["lora.init=eva"], "eva looks at training rows before the first step; take pissa"),
        (["lora.init=loftq"], "loftq quantises the base by itself"),
        (["lora.init=pissa", "method=qlora"], "lora.init pissa changes the base, which method qlora has quantised"),
        (["lora.init=orthogonal", "lora.rank=3"], "init orthogonal needs an even rank"),
        (["lora.lora_bias=true", "lora.init=gaussian"], "lora_bias does not go with init gaussian"),
        (["lora.lora_bias=true", "lora.dora=true"], "lora_bias does not go with dora"),
        (["lora.lora_bias=true"], "lora.lora_bias adds to biases"),
        (["lora.target_modules=nothing.*"], "no adapter can be made"),
        (["lora.target_parameters=[nothing]"], "no adapter can be made"),
        (["lora.target_modules=["], "lora.target_modules"),
    ],
)
def test_adapters_that_cannot_be_are_one_line(write_run, overrides, message):
    result = CliRunner().invoke(main, ["launch", str(write_run(max_steps=1)), *overrides])
    assert result.exit_code == 1
    assert message in result.stderr
    assert sum(line.startswith("Error:") for line in result.stderr.splitlines()) == 1
