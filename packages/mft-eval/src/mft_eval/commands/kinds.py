"""Other kinds of task made from problems: filling in, repair and unit tests."""

import ast
from collections.abc import Sequence
from dataclasses import replace

from mft_eval.judging.killable import killable_mutants
from mft_eval.judging.machine import check_sandbox
from mft_eval.judging.pool import JudgePool
from mft_eval.problems.fields import user_message
from mft_eval.problems.infilling import infilling_problem
from mft_eval.problems.problem import Problem
from mft_eval.problems.unit_tests import LEAST_MUTANTS, MOST_MUTANTS, unit_test_problem
from mft_eval.sandbox.bubblewrap import find_bwrap

_REPAIR = "This Python code has a bug. Answer with the whole of the corrected code in one fenced Python block."


def problems_of_kind(problems: Sequence[Problem], kind: str, num_workers: int) -> Sequence[Problem]:
    """The problems made into a kind of task, plain, fim, fix or tests; those that cannot be are left out."""
    if kind == "plain":
        return problems
    if kind == "fim":
        return [made for problem in problems if (made := infilling_problem(problem)) is not None]
    if kind == "fix":
        return _repairs(problems, num_workers)
    mutants = _mutants(problems, MOST_MUTANTS, num_workers)
    return [
        unit_test_problem(problem, mutants[problem.problem_id])
        for problem in problems
        if len(mutants.get(problem.problem_id, ())) >= LEAST_MUTANTS
    ]


def _repairs(problems: Sequence[Problem], num_workers: int) -> list[Problem]:
    """Repair of the source's own buggy program, else of a mutant that fails the test, so that it is never right."""
    buggy = {problem.problem_id: problem.buggy for problem in problems if problem.buggy}
    without = [problem for problem in problems if not problem.buggy]
    if without:
        buggy |= {problem_id: found[0] for problem_id, found in _mutants(without, 1, num_workers).items()}
    return [_repair(problem, buggy[problem.problem_id]) for problem in problems if problem.problem_id in buggy]


def _mutants(problems: Sequence[Problem], num_wanted: int, num_workers: int) -> dict[str, list[str]]:
    with JudgePool(find_bwrap(), num_workers) as pool:
        check_sandbox(pool)
        return killable_mutants(problems, pool, num_wanted)


def _repair(problem: Problem, buggy: str) -> Problem:
    shown = ast.unparse(ast.parse(buggy))
    return replace(problem, messages=user_message(f"{_REPAIR}\n\n```python\n{shown}\n```"), prompt_code="")
