import copy
import io
import json
import shutil

import pytest
import torch
import yaml
from click.testing import CliRunner
from safetensors.torch import load_file
from torch import nn

from mft_train.cli import main
from mft_train.config.config import RunConfig
from mft_train.errors import TrainError
from mft_train.optimization.optimizer import build_optimizer, check_optimizer, state_bytes


def config(**settings):
    return RunConfig(model="m", dataset="d", output="o", max_steps=10, learning_rate=0.01, **settings)


class Words(nn.Module):
    """An embedding, a matrix large enough for 8-bit state, a small one and vectors."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.embedding = nn.Embedding(100, 64)
        self.wide = nn.Linear(64, 80)
        self.narrow = nn.Linear(80, 3)
        self.frozen = nn.Linear(3, 3).requires_grad_(False)

    def forward(self, ids):
        return self.narrow(self.wide(self.embedding(ids)).tanh())


def train(model, optimizer, steps):
    for step in steps:
        ids = torch.randint(0, 100, (16,), generator=torch.Generator().manual_seed(step))
        model(ids.to(model.wide.weight.device)).pow(2).mean().backward()
        optimizer.step()
        optimizer.zero_grad()
    return [parameter.detach().clone() for parameter in model.parameters()]


def moments(optimizer):
    """Every tensor of the state that grows with its parameter."""
    names = ("exp_avg", "exp_avg_sq", "state1", "state2", "absmax1", "absmax2")
    return [state[name] for state in optimizer.state.values() for name in names if name in state]


@pytest.mark.parametrize("name", ["adamw", "adamw_8bit"])
def test_only_trained_matrices_are_decayed(name):
    model = Words()
    optimizer = build_optimizer(model, config(optimizer=name, weight_decay=0.1))
    decay = {id(p): group["weight_decay"] for group in optimizer.param_groups for p in group["params"]}
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    assert decay == {id(parameter): 0.1 if parameter.dim() == 2 else 0.0 for parameter in trained}


def test_8bit_state_is_for_large_matrices_and_not_for_embeddings():
    model = Words()
    optimizer = build_optimizer(model, config(optimizer="adamw_8bit"))
    train(model, optimizer, range(1))
    types = {name: optimizer.state[p]["state1"].dtype for name, p in model.named_parameters() if p.requires_grad}
    assert types.pop("wide.weight") == torch.uint8
    assert set(types) == {"embedding.weight", "wide.bias", "narrow.weight", "narrow.bias"}
    assert set(types.values()) == {torch.float32}


def test_8bit_updates_follow_those_of_32_bits():
    start = list(Words().parameters())
    settings = {"weight_decay": 0.1, "beta2": 0.99}
    moved = []
    for name in ("adamw", "adamw_8bit"):
        model = Words()
        moved.append(train(model, build_optimizer(model, config(optimizer=name, **settings)), range(20)))
    for first, plain, small in zip(start, *moved, strict=True):
        assert (small - plain).norm() <= 0.05 * (plain - first).norm() + 1e-7


@pytest.mark.parametrize("name", ["adamw", "adamw_8bit", "paged_adamw_32bit", "paged_adamw_8bit"])
@pytest.mark.filterwarnings("ignore:Paged optimizers are not supported on CPU")
def test_loaded_state_continues_bit_for_bit(name):
    settings = config(optimizer=name, weight_decay=0.1)
    model = Words()
    optimizer = build_optimizer(model, settings)
    train(model, optimizer, range(5))
    saved = io.BytesIO()
    torch.save(optimizer.state_dict(), saved)
    saved.seek(0)
    resumed = copy.deepcopy(model)
    other = build_optimizer(resumed, settings)
    other.load_state_dict(torch.load(saved, weights_only=True, map_location="cpu"))
    for one, two in zip(train(model, optimizer, range(5, 9)), train(resumed, other, range(5, 9)), strict=True):
        assert torch.equal(one, two)


@pytest.mark.parametrize("name", ["adamw", "adamw_8bit"])
def test_state_bytes_are_those_of_the_real_state(name):
    model = Words()
    settings = config(optimizer=name)
    optimizer = build_optimizer(model, settings)
    train(model, optimizer, range(1))
    assert state_bytes(model, settings) == sum(tensor.nbytes for tensor in moments(optimizer))


@pytest.mark.parametrize(("name", "instead"), [("paged_adamw_8bit", "adamw_8bit"), ("paged_adamw_32bit", "adamw")])
def test_paged_state_needs_cuda_and_that_is_said_before_anything_is_loaded(tmp_path, name, instead):
    path = tmp_path / "run.yaml"
    values = {"model": "nowhere/", "dataset": "nowhere/", "output": str(tmp_path / "run"), "max_steps": 1}
    path.write_text(yaml.safe_dump(values | {"optimizer": name}))
    with pytest.raises(TrainError) as caught:
        check_optimizer(config(optimizer=name), torch.device("cpu"))
    line = f"optimizer {name} needs a CUDA device, set optimizer: {instead}"
    assert caught.value.message == line
    if not torch.cuda.is_available():
        assert CliRunner().invoke(main, ["launch", str(path)]).stderr == f"Error: {line}\n"


def test_an_8bit_run_resumes_bit_for_bit_and_not_with_another_optimizer(tiny_model, tiny_dataset, tmp_path):
    run_dir, path = tmp_path / "run", tmp_path / "run.yaml"
    # The rank makes the adapter's matrices just large enough for 8-bit state.
    settings = {"max_steps": 6, "global_batch_size": 4, "learning_rate": 0.01, "checkpoint_interval": 3}
    values = {"model": str(tiny_model), "dataset": str(tiny_dataset), "output": str(run_dir)}
    path.write_text(yaml.safe_dump(values | settings | {"optimizer": "adamw_8bit", "lora": {"rank": 128}}))
    assert CliRunner().invoke(main, ["launch", str(path)]).exit_code == 0
    state = load_file(run_dir / "checkpoints" / "step-00000003" / "state" / "optimizer-0000.safetensors")
    assert torch.uint8 in {tensor.dtype for tensor in state.values()}
    final = (run_dir / "final" / "adapter_model.safetensors").read_bytes()
    losses = train_losses(run_dir)
    shutil.rmtree(run_dir / "final")
    shutil.rmtree(run_dir / "checkpoints" / "step-00000006")
    refused = CliRunner().invoke(main, ["launch", str(path), "optimizer=adamw", "--resume"])
    assert refused.exit_code == 1
    assert "optimizer is 'adamw', the checkpoint was made with 'adamw_8bit'" in refused.stderr
    assert CliRunner().invoke(main, ["launch", str(path), "--resume"]).exit_code == 0
    assert (run_dir / "final" / "adapter_model.safetensors").read_bytes() == final
    assert train_losses(run_dir) == losses


def train_losses(run_dir):
    lines = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    return [line["loss"] for line in lines if line["event"] == "train"]


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("name", ["paged_adamw_32bit", "paged_adamw_8bit"])
def test_paged_state_is_paged_before_and_after_a_load(name):
    def large_matrix():
        torch.manual_seed(0)
        return nn.Linear(512, 512, device="cuda")

    def steps(model, optimizer, count):
        for _ in range(count):
            model(torch.ones(1, 512, device="cuda")).pow(2).mean().backward()
            optimizer.step()
            optimizer.zero_grad()

    one, two = large_matrix(), large_matrix()
    first, second = (build_optimizer(model, config(optimizer=name)) for model in (one, two))
    steps(one, first, 2)
    two.load_state_dict(one.state_dict())
    second.load_state_dict(first.state_dict())
    for model, optimizer in ((one, first), (two, second)):
        steps(model, optimizer, 2)
        assert optimizer.state[model.weight]["state1"].is_paged
    assert torch.equal(one.weight, two.weight)
