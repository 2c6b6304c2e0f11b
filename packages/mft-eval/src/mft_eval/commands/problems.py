"""Writing the prompts of a problems file, or of another kind of task made from it."""

import ast
from collections.abc import Sequence
from dataclasses import replace
from itertools import islice

import orjson

from mft_eval.errors import EvalError
from mft_eval.judging.judgement import OUTSIDE, Limits, Ruling
from mft_eval.judging.machine import check_sandbox
from mft_eval.judging.pool import JudgePool
from mft_eval.judging.requests import make_request
from mft_eval.problems.fields import user_message
from mft_eval.problems.infilling import infilling_problem
from mft_eval.problems.mutants import mutants
from mft_eval.problems.problem import Problem, PythonTest
from mft_eval.problems.prompts import STYLES
from mft_eval.problems.reading import read_problems
from mft_eval.sandbox.bubblewrap import find_bwrap

_LIMITS = Limits(10.0, 1024)
_MOST_MUTANTS = 20
_REPAIR = "This Python code has a bug. Answer with the whole of the corrected code in one fenced Python block."


def write_prompts(source: str, style: str, kind: str, num_workers: int) -> bytes:
    """The prompts as JSONL; problems that cannot be made into the kind of task are left out."""
    problems: Sequence[Problem] = read_problems(source).problems
    if kind == "fim":
        problems = [made for problem in problems if (made := infilling_problem(problem)) is not None]
    elif kind == "fix":
        problems = repair_problems(problems, num_workers)
    if not problems:
        raise EvalError(f"no problem can be made into the kind {kind}", where=source)
    prompts = [STYLES[style](problem) for problem in problems]
    return b"".join(orjson.dumps(prompt, option=orjson.OPT_APPEND_NEWLINE) for prompt in prompts)


def repair_problems(problems: Sequence[Problem], num_workers: int) -> list[Problem]:
    """The problems that ask for the repair of a program: the source's own buggy one, else a mutant that fails the test.

    Mutants are judged here, so that handing back what was shown is never right.
    """
    chosen = {problem.problem_id: problem.buggy for problem in problems if problem.buggy}
    pending = {
        problem.problem_id: (problem, list(islice(mutants(problem.reference, problem.entry_point), _MOST_MUTANTS)))
        for problem in problems
        if not problem.buggy and isinstance(problem.test, PythonTest) and problem.reference
    }
    with JudgePool(find_bwrap(), num_workers) as pool:
        if pending:
            check_sandbox(pool)
        for number in range(_MOST_MUTANTS):
            requests = [
                (problem_id, make_request(problem, tried[number], Ruling(OUTSIDE, may_use_objects=True), _LIMITS))
                for problem_id, (problem, tried) in pending.items()
                if number < len(tried)
            ]
            for problem_id, outcome in pool.judge_all(requests):
                if outcome["verdict"] in ("wrong", "exception"):
                    chosen[problem_id] = pending.pop(problem_id)[1][number]
    return [_repair(problem, chosen[problem.problem_id]) for problem in problems if problem.problem_id in chosen]


def _repair(problem: Problem, buggy: str) -> Problem:
    shown = ast.unparse(ast.parse(buggy))
    return replace(problem, messages=user_message(f"{_REPAIR}\n\n```python\n{shown}\n```"), prompt_code="")
