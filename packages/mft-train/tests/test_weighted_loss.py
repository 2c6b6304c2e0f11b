import numpy as np
import pytest
import torch

from mft_train.packed_batch import Row, pack_rows
from mft_train.weighted_loss import CHUNK_TOKENS, token_losses, weighted_loss


def test_token_losses_in_chunks_equal_the_plain_formula():
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(2 * CHUNK_TOKENS + 3, 7, generator=generator, dtype=torch.float64)
    labels = torch.randint(0, 7, (len(logits),), generator=generator)
    plain = logits.logsumexp(-1) - logits.gather(-1, labels[:, None])[:, 0]
    assert torch.allclose(token_losses(logits, labels), plain, rtol=0, atol=1e-12)


def test_low_precision_logits_are_widened():
    logits = torch.tensor([[1.0, 2.0, 3.0]], dtype=torch.bfloat16)
    assert token_losses(logits, torch.tensor([2])).dtype == torch.float32


def test_weighted_loss_of_a_worked_example():
    # Uniform logits over 4 tokens: every token loss is ln 4.
    rows = [
        Row(np.array([0, 1, 2]), np.array([0, 1, 1]), np.array([3]), 1),
        Row(np.array([3, 0]), np.array([0, 1]), np.array([2]), 0),
    ]
    batch = pack_rows(rows)
    logits = torch.zeros(1, 3, 4, dtype=torch.float64)
    loss, sums = weighted_loss(logits, batch, torch.tensor([0.25, 0.5], dtype=torch.float64), 3)
    assert loss.item() == pytest.approx((0.25 * 2 + 0.5) * np.log(4), rel=1e-12)
    assert sums.tolist() == pytest.approx([np.log(4), 2 * np.log(4), 0], rel=1e-12)


def test_a_batch_without_supervised_tokens_gives_a_connected_zero():
    batch = pack_rows([Row(np.array([1, 2]), np.array([0, 0]), np.array([2]), 0)])
    logits = torch.ones(1, 1, 4, requires_grad=True)
    loss, sums = weighted_loss(logits, batch, torch.zeros(1), 1)
    loss.backward()
    assert loss.item() == 0
    assert sums.tolist() == [0]
    assert logits.grad.abs().sum() == 0
