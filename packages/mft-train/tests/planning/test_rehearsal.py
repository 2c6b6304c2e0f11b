"""A pass without values takes what a real one takes, by the bytes that torch's own allocator counts."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch.profiler import ProfilerActivity, profile

from mft_train.config.config import RunConfig
from mft_train.loss.loss_head import LossHead
from mft_train.model.compute import settle_compute
from mft_train.model.load import empty_model, load_model
from mft_train.planning.rehearsal import rehearse
from mft_train.rows.dataset_dir import open_dataset
from mft_train.rows.packed_batch import Row, pack_rows

TOKENS, SUPERVISED = 384, 128


def allocated(step):
    """The most bytes of torch's allocator in `step`, above those at its beginning."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as found:
        step()
    events = [event for event in found.profiler.kineto_results.events() if event.name() == "[memory]"]
    return np.cumsum([event.nbytes() for event in sorted(events, key=lambda event: event.start_ns())]).max()


@pytest.mark.parametrize(
    ("method", "layers", "is_recomputed"), [("full", 2, False), ("lora", 10, False), ("full", 10, True)]
)
def test_a_rehearsed_pass_takes_what_a_pass_takes(make_model, tiny_dataset, tmp_path, method, layers, is_recomputed):
    base = make_model(tmp_path / "base", hidden_size=64, intermediate_size=160, num_hidden_layers=layers)
    config = RunConfig(model=str(base), dataset=str(tiny_dataset), output="o", max_steps=1, method=method)
    compute = replace(settle_compute(config, torch.device("cpu")), gradient_checkpointing=is_recomputed)
    model = load_model(config, compute, open_dataset(str(tiny_dataset)))
    half = TOKENS // 2
    mask = np.arange(TOKENS) % half >= half - SUPERVISED // 2
    batch = pack_rows([Row(np.arange(TOKENS) % 90, mask, np.array([half, half]), 0)])
    head = LossHead(model)

    def one_pass():
        head(model, batch, torch.ones(SUPERVISED))[0].backward()

    one_pass()
    model.zero_grad(set_to_none=True)
    first, following = allocated(one_pass), allocated(one_pass)
    trained = sum(4 * weight.numel() for weight in model.parameters() if weight.requires_grad)
    rehearsed = rehearse(empty_model(config), compute, method, TOKENS, SUPERVISED, is_fused=True)
    assert rehearsed.first == pytest.approx(first, rel=0.03)
    assert rehearsed.next == pytest.approx(following + trained, rel=0.03)
    assert rehearsed.forward <= rehearsed.first


def test_what_cannot_be_rehearsed_is_left_to_an_estimate(make_model, tiny_dataset, tmp_path):
    config = RunConfig(model=str(make_model(tmp_path / "base")), dataset="d", output="o", max_steps=1, method="full")
    compute = replace(settle_compute(config, torch.device("cpu")), dtype="bfloat16")
    assert rehearse(empty_model(config), compute, "full", 64, 32, is_fused=True) is None


@pytest.mark.parametrize("is_fused", [True, False])
def test_a_rehearsal_leaves_the_model_as_it_was(make_model, tmp_path, is_fused):
    config = RunConfig(model=str(make_model(tmp_path / "base")), dataset="d", output="o", max_steps=1, method="qlora")
    compute = settle_compute(config, torch.device("cpu"))
    model = empty_model(config)
    before = {name: (weight.shape, weight.dtype, weight.requires_grad) for name, weight in model.named_parameters()}
    forwards = [vars(module).get("forward") for module in model.modules()]
    assert rehearse(model, compute, "qlora", 64, 32, is_fused=is_fused).first > 0
    after = {name: (weight.shape, weight.dtype, weight.requires_grad) for name, weight in model.named_parameters()}
    assert after == before
    assert [vars(module).get("forward") for module in model.modules()] == forwards
    assert all(weight.grad is None for weight in model.parameters())
