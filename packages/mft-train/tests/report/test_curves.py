"""Curves: what thinning and smoothing keep, and how a chart draws them."""

import itertools
import math
import re

from hypothesis import given
from hypothesis import strategies as st

from mft_train.report.curve import Curve, smooth, telling_points, thin, unbroken
from mft_train.report.line_chart import Line, Marks, line_chart, nice_ticks

finite = st.floats(allow_nan=False, allow_infinity=False)


@given(st.lists(finite, max_size=200), st.integers(4, 50))
def test_thinning_keeps_ends_and_extremes_and_the_limit(values, limit):
    kept = telling_points(values, limit)
    assert len(kept) <= limit
    assert kept == sorted(set(kept))
    if values:
        assert {0, len(values) - 1} <= set(kept)
        chosen = [values[index] for index in kept]
        assert (min(chosen), max(chosen)) == (min(values), max(values))


@given(st.lists(st.one_of(st.just(math.nan), st.floats(-1e9, 1e9)), max_size=200), st.integers(4, 60))
def test_thinning_invents_no_point_and_keeps_visible_gaps(values, limit):
    curve = Curve(list(range(len(values))), values)
    thinned = thin(curve, limit)
    assert set(thinned.finite) <= set(curve.finite)
    assert len(thinned.finite) <= limit
    gaps = len(unbroken(curve))
    assert len(unbroken(thinned)) == (gaps if 4 * gaps <= limit else min(gaps, 1))


@given(st.lists(st.floats(-1e6, 1e6), min_size=1), st.floats(0.5, 100))
def test_a_smoothed_value_lies_among_the_values_so_far(values, half_life):
    smoothed = smooth(Curve(list(range(len(values))), values), half_life).values
    assert smoothed[0] == values[0]
    for index, value in enumerate(smoothed):
        seen = values[: index + 1]
        assert min(seen) - 1e-6 <= value <= max(seen) + 1e-6


def test_smoothing_halves_the_weight_of_a_value_in_a_half_life():
    # After 0 and 3 with half-life 1 the older counts half: (0.5 * 0 + 3) / 1.5 = 2.
    assert smooth(Curve([1, 2, 3], [0.0, 3.0, math.nan]), 1).values[:2] == [0.0, 2.0]


@given(st.floats(-1e9, 1e9), st.floats(1e-6, 1e9), st.integers(2, 8))
def test_ticks_cover_the_range_evenly(low, width, count):
    high = low + width
    ticks = nice_ticks(low, high, count)
    step = ticks[1] - ticks[0]
    slack = 1e-6 * step + 1e-9 * max(abs(low), abs(high))
    assert ticks[0] <= low + slack
    assert ticks[-1] >= high - slack
    assert 2 <= len(ticks) <= count + 2
    assert all(abs(after - before - step) <= slack for before, after in itertools.pairwise(ticks))


def test_colours_repeat_with_dashes():
    lines = [Line(f"task-{index}", Curve([0, 1], [index, index + 1]), index, "smooth") for index in range(20)]
    chart = line_chart("x", "Losses", lines, Marks(1, [], []), is_from_zero=False)
    paints = re.findall(r'<path class="smooth ([^"]+)"', chart)
    assert len(set(paints)) == 20
    assert paints[8] == "c0 d1"
