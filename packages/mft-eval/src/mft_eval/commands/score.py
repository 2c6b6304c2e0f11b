"""Scoring a model's generations: every completion judged, every problem counted, one results object."""

from concurrent.futures import ThreadPoolExecutor, as_completed
from typing import Any

from mft_eval.errors import EvalError
from mft_eval.generations.extraction import extract_program
from mft_eval.generations.reading import Generations, read_generations
from mft_eval.judging.program_judge import Judgement, Limits, ProgramJudge, check_sandbox, find_bwrap
from mft_eval.problems.reading import Problem, ProblemSet, read_problems
from mft_eval.scoring.results import make_results

DEFAULT_KS = (1, 10, 100)


def score(
    problems: str,
    generations: str,
    *,
    ks: tuple[int, ...] | None,
    limits: Limits,
    num_workers: int,
    allow_missing: bool,
) -> dict[str, Any]:
    """The results of judging the generations in the file `generations` (`-` for stdin) on the `problems`."""
    problem_set = read_problems(problems)
    given = read_generations(generations, {problem.problem_id for problem in problem_set.problems})
    _check_complete(problem_set, given, allow_missing)
    ks = choose_ks(ks, given)
    bwrap_path = find_bwrap()
    check_sandbox(bwrap_path, limits)
    judgements = _judge_all(problem_set, given, ProgramJudge(bwrap_path, limits), num_workers)
    return make_results(problem_set, given, judgements, ks, limits)


def choose_ks(ks: tuple[int, ...] | None, generations: Generations) -> tuple[int, ...]:
    """`ks`, or those of 1, 10 and 100 that fit; each at most the smallest number of samples that a problem has."""
    problem_id, samples = min(generations.completions.items(), key=lambda item: (len(item[1]), item[0]))
    if ks is None:
        return tuple(k for k in DEFAULT_KS if k <= len(samples))
    for k in ks:
        if k > len(samples):
            what = f'pass@{k} needs {k} samples of every problem and "{problem_id}" has {len(samples)}'
            raise EvalError(what, fix="generate more samples or lower --k")
    return ks


def _check_complete(problem_set: ProblemSet, generations: Generations, allow_missing: bool) -> None:
    missing = [
        problem.problem_id for problem in problem_set.problems if problem.problem_id not in generations.completions
    ]
    if missing and not allow_missing:
        what = f'{len(missing)} of {len(problem_set.problems)} problems have no generation, the first is "{missing[0]}"'
        raise EvalError(what, fix="generate them or leave them out of the mean with --allow-missing")


def _judge_all(
    problem_set: ProblemSet, generations: Generations, judge: ProgramJudge, num_workers: int
) -> dict[tuple[str, int], Judgement]:
    from rich.console import Console
    from rich.progress import Progress

    console = Console(stderr=True)
    judgements: dict[tuple[str, int], Judgement] = {}
    with (
        Progress(console=console, transient=True, disable=not console.is_terminal) as progress,
        ThreadPoolExecutor(num_workers) as pool,
    ):
        pending = {
            pool.submit(judge.judge, problem, _program(problem, completion)): (problem.problem_id, sample_index)
            for problem in problem_set.problems
            for sample_index, completion in generations.completions.get(problem.problem_id, {}).items()
        }
        bar = progress.add_task("judging", total=len(pending))
        try:
            for future in as_completed(pending):
                judgements[pending[future]] = future.result()
                progress.advance(bar)
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise
    return judgements


def _program(problem: Problem, completion: str) -> str:
    return extract_program(completion, problem.entry_point, problem.prompt_code)
