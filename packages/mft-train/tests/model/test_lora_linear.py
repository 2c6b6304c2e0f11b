import shutil

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import nn

from mft_train.model.lora_linear import fuse_adapters


class Block(nn.Module):
    """Two linear layers, one with a bias."""

    def __init__(self):
        super().__init__()
        self.config = None
        self.up = nn.Linear(6, 9)
        self.down = nn.Linear(9, 4, bias=False)

    def forward(self, x):
        return self.down(self.up(x).tanh())


def adapted(dtype=torch.float64, **settings):
    torch.manual_seed(0)
    model = get_peft_model(Block().to(dtype), LoraConfig(r=3, target_modules=["up", "down"], **settings))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.normal_()
    return model


def outputs_and_gradients(model, x):
    x = x.clone().requires_grad_()
    out = model(x)
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    return [out, *torch.autograd.grad(out.sin().sum(), [x, *trained])]


def test_outputs_and_gradients_are_those_of_peft():
    x = torch.randn(2, 5, 6, dtype=torch.float64)
    model = adapted(lora_alpha=7).double()
    expected = outputs_and_gradients(model, x)
    assert fuse_adapters(model) == 2
    for one, other in zip(outputs_and_gradients(model, x), expected, strict=True):
        assert torch.allclose(one, other, rtol=0, atol=1e-12)


@pytest.mark.slow
@pytest.mark.skipif(not any(shutil.which(name) for name in ("c++", "g++", "clang++")), reason="needs a C++ compiler")
def test_compiled_layers_have_the_same_outputs_and_gradients():
    """In float32, where a product goes to oneDNN outside of a compiled graph."""
    x = torch.randn(2, 32, 6)
    model = adapted(torch.float32)
    fuse_adapters(model)
    expected = outputs_and_gradients(model, x)
    model.get_base_model().compile(dynamic=True)
    for one, other in zip(outputs_and_gradients(model, x), expected, strict=True):
        assert torch.allclose(one, other, rtol=1e-4, atol=1e-5)


def test_inputs_that_need_no_gradient():
    model = adapted().double()
    fuse_adapters(model)
    model(torch.randn(5, 6, dtype=torch.float64)).sum().backward()
    assert all(p.grad is not None for p in model.parameters() if p.requires_grad)


def test_a_low_precision_base_is_as_exact_as_with_peft_and_keeps_every_type():
    model = adapted(torch.bfloat16)
    x = torch.randn(50, 6)
    with torch.autocast("cpu", torch.bfloat16):
        by_peft = outputs_and_gradients(model, x)
        fuse_adapters(model)
        fused = outputs_and_gradients(model, x)
    exact = outputs_and_gradients(model.double(), x.double())
    assert [tensor.dtype for tensor in fused[1:]] == [tensor.dtype for tensor in by_peft[1:]]
    for ours, theirs, truth in zip(fused, by_peft, exact, strict=True):
        assert (ours - truth).norm() <= 2 * (theirs - truth).norm() + 1e-3 * truth.norm()


@pytest.mark.parametrize("settings", [{"lora_dropout": 0.5}, {"use_dora": True}, {"lora_bias": True}])
def test_other_adapters_keep_their_own_forward(settings):
    assert fuse_adapters(adapted(**settings)) == 0


def test_an_adapter_that_is_switched_off_adds_nothing():
    model = adapted().double()
    x = torch.randn(5, 6, dtype=torch.float64)
    with model.disable_adapter():
        expected = model(x)
    fuse_adapters(model)
    with model.disable_adapter():
        assert torch.equal(model(x), expected)
    assert not torch.allclose(model(x), expected)
