import pytest
import torch
from torch.nn.functional import cross_entropy

from mft_train.loss import linear_cross_entropy as module
from mft_train.loss.linear_cross_entropy import LEAST_CHUNK, chunks, linear_cross_entropy

WIDTH, VOCABULARY = 5, 11


def problem(num_positions, dtype):
    generator = torch.Generator().manual_seed(num_positions)
    hidden = torch.randn(num_positions, WIDTH, generator=generator, dtype=dtype, requires_grad=True)
    weight = torch.randn(VOCABULARY, WIDTH, generator=generator, dtype=dtype, requires_grad=True)
    labels = torch.randint(0, VOCABULARY, (num_positions,), generator=generator)
    coefficients = torch.rand(num_positions, generator=generator, dtype=torch.float64)
    return hidden, weight, labels, coefficients


@pytest.mark.parametrize("num_positions", [1, LEAST_CHUNK, 2 * LEAST_CHUNK + 3])
def test_losses_and_gradients_are_those_of_the_plain_formula(num_positions, monkeypatch):
    monkeypatch.setattr(module, "CHUNK_BYTES", 0)  # every chunk has its least size
    hidden, weight, labels, coefficients = problem(num_positions, torch.float64)
    plain = cross_entropy(hidden @ weight.T, labels, reduction="none")
    expected = torch.autograd.grad(3 * (coefficients @ plain), [hidden, weight])
    objective, losses = linear_cross_entropy(hidden, weight, labels, coefficients)
    got = torch.autograd.grad(3 * objective, [hidden, weight])
    assert torch.allclose(losses, plain, rtol=0, atol=1e-12)
    assert objective.item() == pytest.approx((coefficients @ plain).item(), abs=1e-12)
    for one, other in zip(got, expected, strict=True):
        assert torch.allclose(one, other, rtol=0, atol=1e-12)


@pytest.mark.parametrize("trained", ["hidden", "weight"])
def test_either_gradient_alone(trained):
    hidden, weight, labels, coefficients = problem(7, torch.float64)
    tensors = {"hidden": hidden, "weight": weight}
    for name, tensor in tensors.items():
        tensor.requires_grad_(name == trained)
    linear_cross_entropy(hidden, weight, labels, coefficients)[0].backward()
    plain = cross_entropy(hidden @ weight.T, labels, reduction="none")
    expected = torch.autograd.grad(coefficients @ plain, tensors[trained])[0]
    assert torch.allclose(tensors[trained].grad, expected, rtol=0, atol=1e-12)
    assert all(tensor.grad is None for name, tensor in tensors.items() if name != trained)


def test_without_gradients_the_losses_are_the_same():
    arguments = problem(9, torch.float64)
    objective, losses = linear_cross_entropy(*arguments)
    with torch.no_grad():
        bare_objective, bare_losses = linear_cross_entropy(*arguments)
    assert torch.equal(losses, bare_losses)
    assert objective.item() == bare_objective.item()
    assert not bare_objective.requires_grad
    assert not losses.requires_grad


def test_low_precision_is_widened_for_the_softmax_and_kept_for_the_gradients():
    hidden, weight, labels, coefficients = problem(9, torch.bfloat16)
    objective, losses = linear_cross_entropy(hidden, weight, labels, coefficients)
    objective.backward()
    assert losses.dtype == torch.float32
    assert hidden.grad.dtype == weight.grad.dtype == torch.bfloat16
    plain = cross_entropy((hidden @ weight.T).float(), labels, reduction="none")
    assert torch.allclose(losses, plain, rtol=1e-5, atol=1e-5)


def test_autocast_multiplies_in_its_type_and_leaves_float32_gradients():
    hidden, weight, labels, coefficients = problem(9, torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        objective, losses = linear_cross_entropy(hidden, weight, labels, coefficients)
    objective.backward()
    rounded = (hidden.bfloat16() @ weight.bfloat16().T).float()
    assert torch.allclose(losses, cross_entropy(rounded, labels, reduction="none"), rtol=1e-5, atol=1e-5)
    assert hidden.grad.dtype == weight.grad.dtype == torch.float32


def test_chunks_cover_every_position_once_within_their_memory():
    parts = list(chunks(1000, 49_152))
    assert [index for part in parts for index in range(1000)[part]] == list(range(1000))
    assert all(len(range(1000)[part]) * 49_152 * 4 <= module.CHUNK_BYTES for part in parts)


def test_memory_does_not_grow_with_positions_times_vocabulary():
    # 4,000 positions: all logits would be 400 MB in float32, a chunk has 64 MiB.
    vocabulary, width = 25_000, 4
    hidden = torch.zeros(4000, width, requires_grad=True)
    weight = torch.zeros(vocabulary, width)
    labels = torch.zeros(4000, dtype=torch.int64)
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
        linear_cross_entropy(hidden, weight, labels, torch.ones(4000))[0].backward()
    memory, most = 0, 0
    for event in sorted(profile.profiler.kineto_results.events(), key=lambda event: event.start_ns()):
        if event.name() == "[memory]":
            memory += event.nbytes()
            most = max(most, memory)
    assert 0 < most < 4 * module.CHUNK_BYTES
