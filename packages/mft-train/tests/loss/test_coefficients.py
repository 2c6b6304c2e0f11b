import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from mft_train.loss.coefficients import count_batch, segment_coefficients

REDUCTIONS = ["token_mean", "sample_mean", "task_mean", "task_sample_mean"]


@pytest.mark.parametrize(
    ("reduction", "expected"),
    [
        # Task 0 has conversations of 2 and 6 supervised tokens, task 1 one of 4; task 2 is absent. Weights 3, 1, 5.
        ("token_mean", [1 / 12, 1 / 12, 1 / 12]),
        ("sample_mean", [1 / 6, 1 / 18, 1 / 12]),
        ("task_mean", [3 / 4 / 8, 3 / 4 / 8, 1 / 4 / 4]),
        ("task_sample_mean", [3 / 4 / 2 / 2, 3 / 4 / 2 / 6, 1 / 4 / 1 / 4]),
    ],
)
def test_coefficients_of_a_worked_example(reduction, expected):
    tasks, tokens = torch.tensor([0, 0, 1]), torch.tensor([2, 6, 4])
    counts = count_batch(tasks, tokens, 3)
    weights = torch.tensor([3.0, 1.0, 5.0], dtype=torch.float64)
    got = segment_coefficients(reduction, tasks, tokens, counts, weights)
    assert got.tolist() == pytest.approx(expected, rel=1e-12)


segments = st.lists(st.tuples(st.integers(0, 3), st.integers(0, 9)), min_size=1, max_size=30).filter(
    lambda pairs: any(tokens for _, tokens in pairs)
)


@given(
    segments=segments,
    reduction=st.sampled_from(REDUCTIONS),
    weights=st.lists(st.floats(0.1, 10), min_size=4, max_size=4),
)
def test_coefficients_of_all_supervised_tokens_sum_to_one(segments, reduction, weights):
    tasks, tokens = (torch.tensor(column) for column in zip(*segments, strict=True))
    counts = count_batch(tasks, tokens, 4)
    coefficients = segment_coefficients(reduction, tasks, tokens, counts, torch.tensor(weights, dtype=torch.float64))
    assert (coefficients * tokens).sum().item() == pytest.approx(1, rel=1e-12)
    assert (coefficients[tokens > 0] > 0).all()
    assert (coefficients[tokens == 0] == 0).all()


@given(segments=segments, split=st.integers(0, 30), reduction=st.sampled_from(REDUCTIONS))
def test_coefficients_do_not_depend_on_how_the_batch_is_split(segments, split, reduction):
    tasks, tokens = (torch.tensor(column) for column in zip(*segments, strict=True))
    weights = torch.tensor([1.0, 2.0, 3.0, 4.0], dtype=torch.float64)
    whole = segment_coefficients(reduction, tasks, tokens, count_batch(tasks, tokens, 4), weights)
    parts = [(tasks[:split], tokens[:split]), (tasks[split:], tokens[split:])]
    counts = sum(count_batch(*part, 4) for part in parts)
    joined = torch.cat([segment_coefficients(reduction, *part, counts, weights) for part in parts])
    assert torch.equal(whole, joined)
