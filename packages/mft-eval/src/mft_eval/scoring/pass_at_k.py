"""The unbiased estimator of pass@k."""

import math
from collections.abc import Iterable


def estimate_pass_at_k(num_samples: int, num_correct: int, k: int) -> float:
    """The chance that at least one of `k` samples drawn without replacement from `num_samples` is correct.

    1 - C(n - c, k) / C(n, k), in exact integers with a single rounding, so it is stable for every n.
    Needs 1 <= k <= num_samples and 0 <= num_correct <= num_samples. Source: arXiv:2107.03374, equation 1.
    """
    draws = math.comb(num_samples, k)
    return (draws - math.comb(num_samples - num_correct, k)) / draws


def mean_pass_at_k(counts: Iterable[tuple[int, int]], k: int) -> float:
    """The mean over problems of `estimate_pass_at_k`; `counts` are (num_samples, num_correct), at least one."""
    estimates = [estimate_pass_at_k(num_samples, num_correct, k) for num_samples, num_correct in counts]
    return math.fsum(estimates) / len(estimates)
