"""Comparing models on the same problems: paired, since problems differ far more than models do."""

import math
import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from mft_eval.errors import EvalError
from mft_eval.scoring.pass_at_k import estimate_pass_at_k

NUM_PERMUTATIONS = 10_000


@dataclass(frozen=True, slots=True)
class Comparison:
    """B against A on their common problems: `difference` is B's score less A's, `p_value` two-sided."""

    num_problems: int
    difference: float
    test: str
    p_value: float
    wins: tuple[str, ...]
    losses: tuple[str, ...]


def compare(a: dict[str, Any], b: dict[str, Any], k: int) -> Comparison:
    """The comparison of two results at pass@k; wins and losses are the problems where B does better and worse.

    McNemar's exact test where every problem has one sample on both sides, else a permutation test that swaps the
    sides of each problem.
    """
    if a["problems_source"]["sha256"] != b["problems_source"]["sha256"]:
        raise EvalError("the results are of different problems files", fix="score both on the same file")
    pairs = _pairs(a, b, k)
    differences = {problem_id: right - left for problem_id, (left, right) in pairs.items()}
    wins = tuple(problem_id for problem_id, difference in differences.items() if difference > 0)
    losses = tuple(problem_id for problem_id, difference in differences.items() if difference < 0)
    is_single = all(problem["num_samples"] == 1 for results in (a, b) for problem in results["problems"])
    if is_single:
        test, p_value = "mcnemar", mcnemar_p_value(len(wins), len(losses))
    else:
        test, p_value = "permutation", permutation_p_value(list(differences.values()))
    mean = math.fsum(differences.values()) / len(differences)
    return Comparison(len(pairs), mean, test, p_value, wins, losses)


def _pairs(a: dict[str, Any], b: dict[str, Any], k: int) -> dict[str, tuple[float, float]]:
    sides = []
    for results in (a, b):
        short = [problem["problem_id"] for problem in results["problems"] if problem["num_samples"] < k]
        if short:
            raise EvalError(f'problem "{short[0]}" has fewer than {k} samples', fix="choose a smaller --k")
        sides.append(
            {
                problem["problem_id"]: estimate_pass_at_k(problem["num_samples"], problem["num_correct"], k)
                for problem in results["problems"]
            }
        )
    left, right = sides
    common = {problem_id: (left[problem_id], right[problem_id]) for problem_id in left if problem_id in right}
    if not common:
        raise EvalError("the results have no problem in common", fix="score both on the same problems")
    return common


def mcnemar_p_value(num_wins: int, num_losses: int) -> float:
    """The chance of discordant pairs as unequal as these if either side were as likely to win each (exact).

    Source: Q. McNemar, Note on the sampling error of the difference between correlated proportions, 1947.
    """
    num_discordant = num_wins + num_losses
    if num_discordant == 0:
        return 1.0
    tail = sum(math.comb(num_discordant, index) for index in range(min(num_wins, num_losses) + 1))
    return min(1.0, 2 * tail / 2**num_discordant)


def permutation_p_value(differences: Sequence[float], seed: int = 0) -> float:
    """The share of random swaps of sides that give a mean difference at least as far from zero."""
    nonzero = [difference for difference in differences if difference]
    if not nonzero:
        return 1.0
    observed = abs(math.fsum(nonzero)) - 1e-12
    draw = random.Random(seed)
    num_as_far = sum(
        abs(math.fsum(draw.choice((-1, 1)) * difference for difference in nonzero)) >= observed
        for _ in range(NUM_PERMUTATIONS)
    )
    return (num_as_far + 1) / (NUM_PERMUTATIONS + 1)
