"""Weights that ZeRO's stage 3 gathers for a layer are gone when it takes them away, and there again when it is back."""

import gc
import weakref

import pytest
import torch
from torch import nn

from mft_train.engine.deepspeed import let_go_of_weights


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_linear_layer_holds_no_weight_that_is_taken_away(dtype, bias):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(16, 16, bias=bias))
    x = torch.randn(1, 5, 16, requires_grad=True)
    with torch.autocast("cpu", torch.bfloat16, enabled=dtype == torch.bfloat16, cache_enabled=False):
        expected = model(x)
    expected.sum().backward()
    wanted = [x.grad, *(parameter.grad for parameter in model.parameters())]
    x.grad = None
    model.zero_grad()

    let_go_of_weights(model)
    with torch.autocast("cpu", torch.bfloat16, enabled=dtype == torch.bfloat16, cache_enabled=False):
        out = model(x)
    assert out.dtype == dtype
    close = {"rtol": 1e-6, "atol": 1e-6} if dtype == torch.float32 else {"rtol": 1e-2, "atol": 1e-2}
    assert torch.allclose(out, expected, **close)
    weight = model[0].weight
    values = weight.detach().clone()
    held = weakref.ref(weight.untyped_storage())
    weight.data = torch.empty(0)
    gc.collect()
    assert held() is None, "a view or a copy waits for the backward pass"
    weight.data = values
    out.sum().backward()
    found = [x.grad, *(parameter.grad for parameter in model.parameters())]
    assert all(torch.allclose(one, other, **close) for one, other in zip(found, wanted, strict=True))
