import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mft_eval.scoring.comparison import mcnemar_p_value, permutation_p_value
from mft_eval.scoring.intervals import bootstrap_interval, score_interval, wilson_interval


def test_wilson_by_hand():
    low, high = wilson_interval(1, 2)
    assert math.isclose(low, 0.0945, abs_tol=1e-4)
    assert math.isclose(high, 0.9055, abs_tol=1e-4)
    assert wilson_interval(0, 10)[0] == 0.0
    assert wilson_interval(10, 10)[1] == 1.0


@given(st.integers(1, 500).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))))
def test_wilson_holds_the_share_and_is_symmetric(counts):
    correct, trials = counts
    low, high = wilson_interval(correct, trials)
    assert 0 <= low <= correct / trials <= high <= 1
    mirrored = wilson_interval(trials - correct, trials)
    assert math.isclose(low, 1 - mirrored[1], abs_tol=1e-12)


@given(st.lists(st.floats(0, 1), min_size=1, max_size=30))
def test_the_bootstrap_repeats_and_stays_within_the_scores(scores):
    low, high = bootstrap_interval(scores)
    assert (low, high) == bootstrap_interval(scores)
    assert min(scores) - 1e-9 <= low <= high <= max(scores) + 1e-9


def test_samples_of_one_problem_do_not_narrow_the_interval():
    """Ten samples of each of four problems, all alike, tell as little as one of each."""
    method, interval = score_interval([1.0, 1.0, 0.0, 0.0], is_one_sample_each=False)
    assert method == "bootstrap"
    assert interval == (0.0, 1.0)
    assert score_interval([1.0, 0.0], is_one_sample_each=True)[0] == "wilson"


@pytest.mark.parametrize(("wins", "losses", "expected"), [(0, 0, 1.0), (1, 0, 1.0), (5, 0, 0.0625), (8, 2, 0.109375)])
def test_mcnemar_by_hand(wins, losses, expected):
    assert mcnemar_p_value(wins, losses) == mcnemar_p_value(losses, wins) == expected


def test_the_permutation_test_agrees_with_mcnemar_where_both_hold():
    differences = [1.0] * 8 + [-1.0] * 2 + [0.0] * 20
    assert abs(permutation_p_value(differences) - mcnemar_p_value(8, 2)) < 0.02
    assert permutation_p_value([0.0, 0.0]) == 1.0
