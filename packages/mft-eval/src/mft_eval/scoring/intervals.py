"""How far chance may have moved a score: Wilson's interval and the bootstrap over problems."""

import math
import random
from collections.abc import Sequence

Z_95 = 1.959963984540054
NUM_RESAMPLES = 2000


def wilson_interval(num_correct: float, num_trials: int, z: float = Z_95) -> tuple[float, float]:
    """The 95 % interval of a share of `num_trials` independent trials.

    Source: E. B. Wilson, Probable inference, the law of succession, and statistical inference, 1927.
    """
    share = num_correct / num_trials
    denominator = 1 + z * z / num_trials
    centre = share + z * z / (2 * num_trials)
    spread = z * math.sqrt(share * (1 - share) / num_trials + z * z / (4 * num_trials * num_trials))
    # At the ends the formula gives 0 and 1 but for rounding.
    low = 0.0 if num_correct == 0 else (centre - spread) / denominator
    return low, 1.0 if num_correct == num_trials else (centre + spread) / denominator


def bootstrap_interval(scores: Sequence[float], seed: int = 0) -> tuple[float, float]:
    """The 95 % percentile interval of the mean of `scores`, one for each problem.

    The problems are drawn with replacement, each with all of its samples, so that samples of one problem, which are
    alike, do not count as independent.
    """
    draw = random.Random(seed)
    num_problems = len(scores)
    means = sorted(math.fsum(draw.choices(scores, k=num_problems)) / num_problems for _ in range(NUM_RESAMPLES))
    return means[round(0.025 * (NUM_RESAMPLES - 1))], means[round(0.975 * (NUM_RESAMPLES - 1))]


def score_interval(scores: Sequence[float], *, is_one_sample_each: bool) -> tuple[str, tuple[float, float]]:
    """The method's name and the interval of the mean: Wilson's where each problem was tried once, else bootstrap."""
    if is_one_sample_each:
        return "wilson", wilson_interval(math.fsum(scores), len(scores))
    return "bootstrap", bootstrap_interval(scores)
