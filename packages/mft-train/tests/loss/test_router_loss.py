import json
import shutil

import numpy as np
import pytest
import torch
import yaml
from click.testing import CliRunner

from mft_train.checkpoint.checkpoint import load_adapter
from mft_train.cli import main
from mft_train.config.config import RunConfig
from mft_train.errors import TrainError
from mft_train.loss.router_loss import RouterLoss, find_router_loss
from mft_train.model.compute import settle_compute
from mft_train.model.isolation import check_isolation
from mft_train.model.load import load_model
from mft_train.rows.dataset_dir import open_dataset
from mft_train.rows.packed_batch import Row, pack_rows

SHAPE = {
    "vocab_size": 97,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "num_experts_per_tok": 2,
    "initializer_range": 0.1,
}


@pytest.fixture(scope="module")
def mixtral(tmp_path_factory):
    from transformers import AutoModelForCausalLM, MixtralConfig

    path = tmp_path_factory.mktemp("mixtral") / "base"
    torch.manual_seed(0)
    shape = MixtralConfig(**SHAPE, num_local_experts=4, router_aux_loss_coef=0.02)
    AutoModelForCausalLM.from_config(shape).save_pretrained(path)
    return str(path)


@pytest.fixture(scope="module")
def qwen(tmp_path_factory):
    from transformers import AutoModelForCausalLM, Qwen2MoeConfig

    path = tmp_path_factory.mktemp("qwen") / "base"
    torch.manual_seed(0)
    shape = Qwen2MoeConfig(**SHAPE, num_experts=6, moe_intermediate_size=24, shared_expert_intermediate_size=24)
    AutoModelForCausalLM.from_config(shape).save_pretrained(path)
    return str(path)


@pytest.fixture
def load(tiny_dataset):
    def load(model, coef=None, weights_dir=None, **settings):
        values = {"model": model, "dataset": str(tiny_dataset), "output": "o", "max_steps": 1, "method": "full"}
        config = RunConfig(**values | {"loss": {"router_aux_loss_coef": coef}} | settings)
        compute = settle_compute(config, torch.device("cpu"))
        return load_model(config, compute, open_dataset(str(tiny_dataset)), weights_dir), config

    return load


def batch_of(*lengths):
    ids = np.random.default_rng(len(lengths)).integers(0, 97, sum(lengths))
    return pack_rows([Row(ids, np.ones(len(ids)), np.array(lengths), 0)])


def test_a_worked_example():
    # Two tokens, two experts, one each: token 0 goes to expert 0, token 1 to expert 0 as well.
    logits = torch.tensor([[2.0, 0.0], [1.0, 0.0]]).log_softmax(-1)
    probabilities = logits.exp().mean(0)
    # experts * sum of (share of tokens) * (mean probability): all tokens at expert 0.
    router = RouterLoss(0.5, 1)
    assert router.of_batch((logits,)).item() == pytest.approx(2 * probabilities[0].item())
    # A micro batch with 2 of 8 tokens has a quarter of the weight.
    assert router.term((logits,), 2, 8).item() == pytest.approx(0.5 * 2 / 8 * 2 * probabilities[0].item())


@pytest.mark.parametrize("name", ["mixtral", "qwen"])
@pytest.mark.parametrize("is_recomputed", [False, True])
def test_the_term_has_the_value_and_the_gradient_of_transformers_own(request, load, name, is_recomputed):
    model, config = load(request.getfixturevalue(name), gradient_checkpointing=is_recomputed)
    check_isolation(model, "float32")
    router = find_router_loss(model, config)
    assert router == RouterLoss({"mixtral": 0.02, "qwen": 0.001}[name], 2)
    batch = batch_of(9, 12)
    output = model(**batch.forward_keywords(), **router.forward_keywords())
    term = router.term(output.router_logits, 21, 84)
    assert term.item() == pytest.approx(router.coefficient * 21 / 84 * output.aux_loss.item())
    gates = [parameter for name, parameter in model.named_parameters() if name.endswith("mlp.gate.weight")]
    assert len(gates) == 2
    ours = torch.autograd.grad(term, gates, retain_graph=True)
    for gradient, theirs in zip(ours, torch.autograd.grad(output.aux_loss, gates), strict=True):
        assert gradient.abs().max() > 0
        assert torch.allclose(gradient, router.coefficient * 21 / 84 * theirs, rtol=1e-5, atol=1e-9)


def test_terms_of_micro_batches_add_up_to_their_mean_by_tokens(load, mixtral):
    model, config = load(mixtral)
    router = find_router_loss(model, config)
    batches = [batch_of(4), batch_of(9, 12), batch_of(5, 5, 5)]
    tokens = [batch.input_ids.numel() for batch in batches]
    total, losses = 0.0, []
    for batch, count in zip(batches, tokens, strict=True):
        output = model(**batch.forward_keywords(), **router.forward_keywords())
        total += router.term(output.router_logits, count, torch.tensor(float(sum(tokens)))).item()
        losses.append(output.aux_loss.item())
    assert total == pytest.approx(0.02 * np.average(losses, weights=tokens), rel=1e-5)


def test_training_on_the_term_evens_out_the_experts(load, mixtral):
    model, config = load(mixtral)
    router = find_router_loss(model, config)
    batch = batch_of(16, 16, 16)
    optimizer = torch.optim.Adam(model.parameters(), 1e-3)
    losses = []
    for _ in range(20):
        output = model(**batch.forward_keywords(), **router.forward_keywords())
        losses.append(router.of_batch(output.router_logits).item())
        router.term(output.router_logits, 48, 48).backward()
        optimizer.step()
        optimizer.zero_grad()
    # Even use gives experts_per_token, the least that there is in the mean.
    assert losses[-1] - 2 < 0.5 * (losses[0] - 2)


def test_the_coefficient_is_the_models_own_unless_set(load, mixtral, tiny_model):
    assert find_router_loss(*load(mixtral)).coefficient == 0.02
    assert find_router_loss(*load(mixtral, 0.5)).coefficient == 0.5
    assert find_router_loss(*load(mixtral, 0.0)) is None
    assert find_router_loss(*load(str(tiny_model))) is None
    with pytest.raises(TrainError, match=r"the model has no router.* set loss\.router_aux_loss_coef: 0"):
        find_router_loss(*load(str(tiny_model), 0.01))


def test_the_check_leaves_the_model_in_its_mode(load, mixtral):
    model, config = load(mixtral)
    for is_training in (True, False):
        find_router_loss(model.train(is_training), config)
        assert model.training is is_training
    assert all(parameter.grad is None for parameter in model.parameters())


@pytest.mark.parametrize("method", ["full", "lora"])
def test_a_mixture_of_experts_trains_packed_rows_and_resumes(load, mixtral, tiny_dataset, tmp_path, method):
    run_dir, path = tmp_path / "run", tmp_path / "run.yaml"
    values = {"model": mixtral, "dataset": str(tiny_dataset), "output": str(run_dir), "method": method, "max_steps": 4}
    path.write_text(yaml.safe_dump(values | {"global_batch_size": 4, "learning_rate": 0.01, "checkpoint_interval": 2}))
    result = CliRunner().invoke(main, ["launch", str(path)])
    assert result.exit_code == 0, result.stderr
    losses = train_losses(run_dir)
    assert all(router > 0 for _, router in losses)
    shutil.rmtree(run_dir / "final")
    shutil.rmtree(run_dir / "checkpoints" / "step-00000004")
    assert CliRunner().invoke(main, ["launch", str(path), "--resume"]).exit_code == 0
    assert train_losses(run_dir) == losses
    # What a resume reads is what anyone else reads.
    resumed, _ = load(mixtral, method=method)
    before = logits_of(resumed)
    if method == "lora":
        load_adapter(resumed, run_dir / "final")
    else:
        resumed, _ = load(mixtral, method=method, weights_dir=run_dir / "final")
    assert torch.allclose(logits_of(resumed), logits_of(read_back(run_dir / "final", mixtral)), atol=1e-5)
    assert not torch.allclose(logits_of(resumed), before, atol=1e-2)


def logits_of(model):
    with torch.no_grad():
        return model.eval()(**batch_of(11).forward_keywords()).logits


def read_back(path, base):
    """A finished model or adapter, as any user of transformers and peft loads it."""
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    if (path / "adapter_config.json").is_file():
        return PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), path)
    return AutoModelForCausalLM.from_pretrained(path)


def train_losses(run_dir):
    lines = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    return [(line["loss"], line["router_loss"]) for line in lines if line["event"] == "train"]
