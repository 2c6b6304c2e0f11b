"""Other kinds of task made from problems: filling in, repair, unit tests, translation and explanation."""

import ast
from collections.abc import Callable, Sequence
from dataclasses import replace

from mft_eval.errors import EvalError
from mft_eval.generations.reading import read_generations
from mft_eval.judging.isolation import Isolation, open_pool
from mft_eval.judging.killable import killable_mutants
from mft_eval.problems.explaining import explaining_problem, regenerating_problem
from mft_eval.problems.fields import user_message
from mft_eval.problems.infilling import infilling_problem
from mft_eval.problems.problem import Problem
from mft_eval.problems.reading import read_problems
from mft_eval.problems.task_kind import TaskKind
from mft_eval.problems.translation import LANGUAGE_TITLES, humaneval_number, translation_problem
from mft_eval.problems.unit_tests import LEAST_MUTANTS, MOST_MUTANTS, unit_test_problem

_REPAIR = "This {0} code has a bug. Answer with the whole of the corrected code in one fenced {0} block."


def read_kind(name: str, explanations: str | None) -> TaskKind:
    """The kind called `name`; `explanations` is a generations file of one explanation for each problem."""
    if explanations is None:
        return TaskKind(name)
    if name != "explain":
        raise EvalError(f"the kind {name} has no explanations", fix="use --kind explain with --explanations")
    samples = read_generations(explanations, None).completions
    several = [problem_id for problem_id, found in samples.items() if len(found) > 1]
    if several:
        raise EvalError(f'problem "{several[0]}" has several explanations', where=explanations, fix="give one of each")
    return TaskKind(name, {problem_id: next(iter(found.values())).text for problem_id, found in samples.items()})


def problems_of_kind(
    problems: Sequence[Problem], kind: TaskKind, num_workers: int, isolation: Isolation
) -> Sequence[Problem]:
    """The problems made into a kind of task; those that cannot be are left out."""
    if kind.name == "plain":
        return problems
    if kind.name == "fix":
        return _repairs(problems, num_workers, isolation)
    if kind.name == "tests":
        return _unit_tests(problems, num_workers, isolation)
    make = _maker(kind)
    return [made for problem in problems if (made := make(problem)) is not None]


def _maker(kind: TaskKind) -> Callable[[Problem], Problem | None]:
    if kind.name == "fim":
        return infilling_problem
    if kind.name == "translate":
        numbered = {humaneval_number(problem.problem_id): problem for problem in read_problems("humaneval").problems}
        humaneval = {number: problem for number, problem in numbered.items() if number is not None}
        return lambda problem: translation_problem(problem, humaneval)
    explanations = kind.explanations
    if explanations is None:
        return explaining_problem
    return lambda p: regenerating_problem(p, explanations[p.problem_id]) if p.problem_id in explanations else None


def _unit_tests(problems: Sequence[Problem], num_workers: int, isolation: Isolation) -> list[Problem]:
    mutants = _mutants(problems, MOST_MUTANTS, num_workers, isolation)
    return [
        unit_test_problem(problem, mutants[problem.problem_id])
        for problem in problems
        if len(mutants.get(problem.problem_id, ())) >= LEAST_MUTANTS
    ]


def _repairs(problems: Sequence[Problem], num_workers: int, isolation: Isolation) -> list[Problem]:
    """Repair of the source's own buggy program, else of a mutant that fails the test, so that it is never right."""
    buggy = {problem.problem_id: problem.buggy for problem in problems if problem.buggy}
    without = [problem for problem in problems if not problem.buggy]
    if without:
        buggy |= {problem_id: found[0] for problem_id, found in _mutants(without, 1, num_workers, isolation).items()}
    return [_repair(problem, buggy[problem.problem_id]) for problem in problems if problem.problem_id in buggy]


def _mutants(
    problems: Sequence[Problem], num_wanted: int, num_workers: int, isolation: Isolation
) -> dict[str, list[str]]:
    with open_pool(isolation, num_workers) as pool:
        return killable_mutants(problems, pool, num_wanted)


def _repair(problem: Problem, buggy: str) -> Problem:
    shown = ast.unparse(ast.parse(buggy)) if problem.language == "python" else buggy.strip()
    ask = _REPAIR.format(LANGUAGE_TITLES[problem.language])
    return replace(problem, messages=user_message(f"{ask}\n\n```{problem.language}\n{shown}\n```"), prompt_code="")
