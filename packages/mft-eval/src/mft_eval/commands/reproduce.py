"""Judging one sample by hand: the program, the verdict and all that the results leave out."""

from collections.abc import Mapping
from typing import Any

from mft_eval.commands.kinds import problems_of_kind
from mft_eval.errors import EvalError
from mft_eval.generations.reading import read_generations
from mft_eval.judging.gate import rule
from mft_eval.judging.isolation import Isolation, open_pool
from mft_eval.judging.judgement import Limits
from mft_eval.judging.languages import check_toolchain
from mft_eval.judging.requests import make_request, read_outcome
from mft_eval.problems.problem import CompiledTest, Problem, PythonTest
from mft_eval.problems.program import make_program
from mft_eval.problems.reading import read_problems
from mft_eval.problems.task_kind import TaskKind


def find_program(
    problems: str, generations: str, problem_id: str, sample_index: int, kind: TaskKind, isolation: Isolation
) -> tuple[Problem, str]:
    """The problem and the program of one sample."""
    by_id = {problem.problem_id: problem for problem in read_problems(problems).problems}
    if problem_id not in by_id:
        raise EvalError(f'no problem is called "{problem_id}"', where=problems)
    samples = read_generations(generations, by_id).completions.get(problem_id, {})
    if sample_index not in samples:
        known = ", ".join(map(str, sorted(samples))) or "none"
        raise EvalError(
            f'problem "{problem_id}" has no sample {sample_index}', where=generations, fix=f"it has {known}"
        )
    made = problems_of_kind([by_id[problem_id]], kind, 1, isolation)
    if not made:
        raise EvalError(f'problem "{problem_id}" cannot be made into the kind {kind.name}', where=problems)
    return made[0], make_program(samples[sample_index], made[0])


def reproduce(problem: Problem, program: str, limits: Limits, isolation: Isolation) -> str:
    """What judging the program shows, as text that is safe to print."""
    check_toolchain(problem.language)
    with open_pool(isolation, 1) as pool:
        ruling = rule([problem], pool, limits, lambda _: None)[problem.problem_id]
        if ruling.fault:
            return f"the problem cannot be judged: {ruling.fault}\n"
        request = make_request(problem, program, ruling, limits, is_captured=True)
        ((_, outcome),) = pool.judge_all([("sample", request)])
    judgement = read_outcome(outcome, problem, ruling, isolation.walls)
    told = {
        "verdict": ": ".join(part for part in (judgement.verdict, judgement.detail) if part),
        "mode": judgement.mode,
        "untrusted": judgement.untrusted,
        "seconds": f"{judgement.seconds:.3f}",
        **tell(problem, outcome),
    }
    return "".join(_told(name, text) for name, text in told.items() if text)


def tell(problem: Problem, outcome: Mapping[str, Any]) -> dict[str, str]:
    """What a captured outcome has to show of where and how a program failed, by name; a text may be empty."""
    return {
        "failed at": _line(problem, outcome.get("line", 0)),
        "last call": outcome.get("call", ""),
        "error": outcome.get("error", ""),
        "printed": outcome.get("said", ""),
        "output": outcome.get("output", ""),
    }


def _line(problem: Problem, number: int) -> str:
    if isinstance(problem.test, CompiledTest) or not number or not isinstance(problem.test, PythonTest):
        return ""
    return f"line {number} of the test: {problem.test.script.splitlines()[number - 1].strip()}"


def _told(name: str, text: str) -> str:
    """Control characters of a program could do things to a terminal."""
    safe = "".join(character if character.isprintable() or character in "\n\t" else "?" for character in text)
    lines = safe.rstrip("\n").split("\n")
    if len(lines) == 1:
        return f"{name}: {lines[0]}\n"
    return f"{name}:\n" + "".join(f"    {line}\n" for line in lines)
