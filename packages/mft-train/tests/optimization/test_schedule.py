import pytest
from hypothesis import given
from hypothesis import strategies as st

from mft_train.config.config import RunConfig
from mft_train.errors import TrainError
from mft_train.optimization.schedule import learning_rate_at, num_run_steps, num_warmup_steps


def config(**settings):
    return RunConfig(model="m", dataset="d", output="o", learning_rate=1.0, **{"max_steps": 10} | settings)


def test_warm_up_and_cosine_of_a_worked_example():
    settings = config(warmup_steps=2, min_learning_rate=0.2)
    rates = [learning_rate_at(step, 10, settings) for step in range(10)]
    assert rates[:3] == pytest.approx([0.5, 1.0, 1.0])
    # Half of the eight decaying steps: the middle of 1.0 and 0.2.
    assert rates[6] == pytest.approx(0.6)


def test_linear_and_constant():
    assert learning_rate_at(5, 10, config(schedule="linear")) == pytest.approx(0.5)
    assert learning_rate_at(9, 10, config(schedule="constant")) == 1.0


def test_a_share_of_all_steps_is_that_many_steps():
    for num_steps, ratio, steps in ((10, 0.2, 2), (100, 0.07, 7), (100, 0.29, 29), (7, 0.5, 4), (3, 0.1, 0)):
        assert num_warmup_steps(num_steps, config(warmup_ratio=ratio)) == steps
    for step in range(10):
        by_ratio = learning_rate_at(step, 10, config(warmup_ratio=0.2, min_learning_rate=0.1))
        assert by_ratio == learning_rate_at(step, 10, config(warmup_steps=2, min_learning_rate=0.1))


@given(st.integers(1, 10_000), st.floats(0, 1, exclude_max=True))
def test_every_share_leaves_a_curve_between_nothing_and_the_peak(num_steps, ratio):
    settings = config(warmup_ratio=ratio)
    assert abs(num_warmup_steps(num_steps, settings) - ratio * num_steps) <= 0.5
    assert all(0 < learning_rate_at(step, num_steps, settings) <= 1 for step in {0, num_steps // 2, num_steps - 1})


@given(st.sampled_from(["cosine", "linear", "constant"]), st.integers(0, 9), st.floats(0, 1))
def test_rates_never_rise_after_warm_up_nor_fall_below_the_minimum(schedule, warmup, low):
    settings = config(schedule=schedule, warmup_steps=warmup, min_learning_rate=low)
    rates = [learning_rate_at(step, 10, settings) for step in range(warmup, 10)]
    assert rates == sorted(rates, reverse=True)
    assert all(low - 1e-12 <= rate <= 1 for rate in rates)


def test_warm_up_must_end_before_a_run_of_epochs_does():
    settings = config(max_steps=None, epochs=2, warmup_steps=10)
    assert num_run_steps(6, settings) == 12
    with pytest.raises(TrainError, match="warmup_steps 10 is not below the 10 steps of the run, lower it"):
        num_run_steps(5, settings)
