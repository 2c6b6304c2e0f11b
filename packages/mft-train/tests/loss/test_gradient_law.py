"""The law: one gradient for every factorisation of the same global batch, in float64 to 1e-10."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mft_train.engine.plain import PlainEngine
from mft_train.loss.coefficients import count_batch, gradient_shares, segment_coefficients
from mft_train.loss.loss_head import LossHead
from mft_train.model import segment_attention
from mft_train.rows.packed_batch import Row, pack_rows
from mft_train.running.train_step import accumulate_gradients

TASK_WEIGHTS = torch.tensor([1.0, 2.5, 0.5], dtype=torch.float64)
EXPECTED_COUNTS = torch.tensor([[50.0, 20.0, 5.0], [6.0, 3.0, 0.5]], dtype=torch.float64)


@pytest.fixture(scope="module")
def accelerator():
    from accelerate import Accelerator

    return Accelerator(cpu=True)


@pytest.fixture(scope="module")
def model(tiny_model):
    from transformers import AutoModelForCausalLM

    segment_attention.register()
    return AutoModelForCausalLM.from_pretrained(tiny_model, attn_implementation=segment_attention.NAME).double()


@pytest.fixture(scope="module")
def rows(make_row):
    generator = np.random.default_rng(3)
    samples = [make_row(generator, 40) for _ in range(6)]
    made = [Row(**sample, task_id=task) for sample, task in zip(samples, (0, 0, 1, 0, 1, 0), strict=True)]
    # One row has nothing to learn from.
    return [*made[:5], replace(made[5], loss_mask=np.zeros_like(made[5].loss_mask))]


def gradient(accelerator, model, rows, micro_batch_size, reduction, expected_counts=None):
    model.zero_grad()
    result = accumulate_gradients(
        PlainEngine(accelerator),
        model,
        None,
        LossHead(model),
        rows,
        micro_batch_size=micro_batch_size,
        reduction=reduction,
        task_weights=TASK_WEIGHTS,
        max_grad_norm=1e9,
        expected_counts=expected_counts,
    )
    return result, torch.cat([parameter.grad.flatten() for parameter in model.parameters()])


def unpack(rows):
    """The same conversations, one per row."""
    for row in rows:
        borders = np.cumsum(row.segment_lengths)[:-1]
        for ids, mask in zip(np.split(row.input_ids, borders), np.split(row.loss_mask, borders), strict=True):
            yield Row(ids, mask, np.array([len(ids)]), row.task_id)


def plain_gradient(model, rows, reduction):
    """The formula itself, conversation by conversation, through the model's own labels-free forward."""
    model.zero_grad()
    losses = {}
    for row in unpack(rows):
        ids = torch.tensor(row.input_ids.astype(np.int64))[None]
        logits = model(ids).logits[0, :-1]
        losses_of_row = torch.nn.functional.cross_entropy(logits, ids[0, 1:], reduction="none")
        kept = losses_of_row[torch.tensor(row.loss_mask[1:] == 1)]
        if len(kept):
            losses.setdefault(row.task_id, []).append(kept)
    if reduction == "token_mean":
        objective = torch.cat([loss for parts in losses.values() for loss in parts]).mean()
    elif reduction == "sample_mean":
        objective = torch.stack([loss.mean() for parts in losses.values() for loss in parts]).mean()
    else:
        means = {
            task: torch.cat(parts).mean() if reduction == "task_mean" else torch.stack([p.mean() for p in parts]).mean()
            for task, parts in losses.items()
        }
        total = sum(TASK_WEIGHTS[task] for task in means)
        objective = sum(TASK_WEIGHTS[task] * mean for task, mean in means.items()) / total
    objective.backward()
    return objective.item(), torch.cat([parameter.grad.flatten() for parameter in model.parameters()])


@pytest.mark.parametrize("reduction", ["token_mean", "sample_mean", "task_mean", "task_sample_mean"])
def test_the_gradient_is_that_of_the_documented_formula(accelerator, model, rows, reduction):
    result, got = gradient(accelerator, model, rows, 2, reduction)
    objective, expected = plain_gradient(model, rows, reduction)
    assert result.loss == pytest.approx(objective, abs=1e-10)
    assert torch.allclose(got, expected, rtol=0, atol=1e-10)
    assert result.task_losses[2] is None


@given(
    reduction=st.sampled_from(["token_mean", "sample_mean", "task_mean", "task_sample_mean"]),
    micro_batch_size=st.integers(1, 6),
    order=st.permutations(range(6)),
    is_packed=st.booleans(),
    is_expected=st.booleans(),
)
@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_micro_batches_order_and_packing_do_not_change_the_gradient(
    accelerator, model, rows, reduction, micro_batch_size, order, is_packed, is_expected
):
    counts = EXPECTED_COUNTS if is_expected else None
    reference_result, reference = gradient(accelerator, model, rows, 6, reduction, counts)
    shuffled = [rows[index] for index in order]
    result, got = gradient(
        accelerator, model, shuffled if is_packed else list(unpack(shuffled)), micro_batch_size, reduction, counts
    )
    assert torch.allclose(got, reference, rtol=0, atol=1e-10)
    assert result.loss == pytest.approx(reference_result.loss, abs=1e-10)
    assert result.supervised_tokens == reference_result.supervised_tokens
    assert result.task_shares == pytest.approx(reference_result.task_shares, rel=1e-12)


@pytest.mark.parametrize("reduction", ["token_mean", "sample_mean", "task_mean", "task_sample_mean"])
def test_task_shares_are_the_sums_of_the_coefficients(rows, reduction):
    batch = pack_rows(rows)
    counts = count_batch(batch.segment_tasks, batch.segment_tokens, 3)
    for expected in (None, EXPECTED_COUNTS):
        shares = gradient_shares(reduction, counts, TASK_WEIGHTS, expected)
        is_used = expected is not None and reduction.startswith("task_")
        coefficients = segment_coefficients(
            reduction, batch.segment_tasks, batch.segment_tokens, expected if is_used else counts, TASK_WEIGHTS
        )
        sums = torch.zeros(3, dtype=torch.float64)
        sums.index_add_(0, batch.segment_tasks[batch.token_segments], coefficients[batch.token_segments])
        assert torch.allclose(shares, sums, rtol=0, atol=1e-12)
        assert is_used or shares.sum().item() == pytest.approx(1)


def test_batches_divided_by_expected_counts_add_up_to_the_mean_over_all_rows(accelerator, model, rows):
    # Single rows as batches of an epoch of them: the mean of their gradients is that of all rows in one batch.
    counts = [count_batch(batch.segment_tasks, batch.segment_tokens, 3) for batch in (pack_rows([row]) for row in rows)]
    expected = torch.stack(counts).mean(0)
    _, whole = gradient(accelerator, model, rows, 6, "task_mean")
    parts = [gradient(accelerator, model, [row], 1, "task_mean", expected)[1] for row in rows]
    # A coefficient is rounded to float32.
    assert torch.allclose(torch.stack(parts).mean(0), whole, rtol=0, atol=1e-7)
    alone = [gradient(accelerator, model, [row], 1, "task_mean")[1] for row in rows[:5]]
    assert not torch.allclose(torch.stack(alone).mean(0), whole, rtol=0, atol=1e-3)


@pytest.mark.parametrize("reduction", ["token_mean", "sample_mean", "task_mean", "task_sample_mean"])
@pytest.mark.parametrize("is_packed", [True, False])
def test_a_conversation_of_weight_three_counts_as_three_of_it(accelerator, model, rows, reduction, is_packed):
    generator = np.random.default_rng(5)
    weighted = [replace(row, segment_weights=generator.integers(1, 4, len(row.segment_lengths))) for row in rows]
    repeated = []
    for row in weighted:
        alone = list(unpack([row]))
        repeated += [one for one, times in zip(alone, row.segment_weights, strict=True) for _ in range(times)]
    if not is_packed:
        weighted = [
            replace(one, segment_weights=np.array([weight]))
            for row in weighted
            for one, weight in zip(unpack([row]), row.segment_weights, strict=True)
        ]
    result, got = gradient(accelerator, model, weighted, 2, reduction)
    expected_result, expected = gradient(accelerator, model, repeated, 5, reduction)
    # The model's norms round to float32 on the way back, three small gradients otherwise than a large one.
    assert torch.allclose(got, expected, rtol=0, atol=1e-7)
    assert result.loss == pytest.approx(expected_result.loss, abs=1e-10)
    assert result.supervised_tokens < expected_result.supervised_tokens, "tokens are counted as they are"
    _, plain = gradient(accelerator, model, rows, 2, reduction)
    assert not torch.allclose(got, plain, atol=1e-6)
