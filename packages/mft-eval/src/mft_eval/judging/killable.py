"""Mutants of a problem's reference that its own test finds wrong."""

from collections.abc import Iterable
from itertools import islice

from mft_eval.judging.judgement import OUTSIDE, Limits, Ruling
from mft_eval.judging.pool import JudgePool
from mft_eval.judging.requests import make_request
from mft_eval.problems.mutants import mutants
from mft_eval.problems.problem import Problem, PythonTest

_LIMITS = Limits(10.0, 1024)
_MOST_TRIED = 24
_OUTSIDE = Ruling(OUTSIDE, may_use_objects=True)


def killable_mutants(problems: Iterable[Problem], pool: JudgePool, num_wanted: int) -> dict[str, list[str]]:
    """Up to `num_wanted` mutants of each problem's reference by problem id, none that runs for ever.

    A problem whose test finds none wrong, or that is no Python test with a reference, is left out.
    """
    tried = {
        problem.problem_id: (problem, list(islice(mutants(problem.reference, problem.entry_point), _MOST_TRIED)))
        for problem in problems
        if isinstance(problem.test, PythonTest) and problem.reference
    }
    killed: dict[str, list[str]] = {}
    for first in range(0, _MOST_TRIED, num_wanted):
        requests = [
            ((problem_id, number), make_request(problem, programs[number], _OUTSIDE, _LIMITS))
            for problem_id, (problem, programs) in tried.items()
            for number in range(first, min(first + num_wanted, len(programs)))
            if len(killed.get(problem_id, ())) < num_wanted
        ]
        outcomes = dict(pool.judge_all(requests))
        for problem_id, number in sorted(outcomes):
            if outcomes[problem_id, number]["verdict"] in ("wrong", "exception"):
                killed.setdefault(problem_id, []).append(tried[problem_id][1][number])
    return {problem_id: found[:num_wanted] for problem_id, found in killed.items()}
