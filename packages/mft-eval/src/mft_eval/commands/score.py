"""Scoring a model's generations: references first, then every completion, one results object."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import orjson

from mft_eval.commands.counted import counted, verb
from mft_eval.commands.kinds import problems_of_kind
from mft_eval.commands.progress import Progress
from mft_eval.errors import EvalError
from mft_eval.generations.reading import Generations, read_generations
from mft_eval.judging.gate import rule
from mft_eval.judging.isolation import Isolation, check_pool
from mft_eval.judging.judgement import Judgement, Limits, Ruling
from mft_eval.judging.languages import check_toolchain
from mft_eval.judging.pool import JudgePool
from mft_eval.judging.requests import make_request, read_outcome
from mft_eval.judging.ruling_cache import cache_path, read_rulings, write_rulings
from mft_eval.problems.problem import Problem, ProblemSet
from mft_eval.problems.program import make_program
from mft_eval.problems.reading import read_problems
from mft_eval.problems.task_kind import TaskKind
from mft_eval.scoring.artifact import check_output
from mft_eval.scoring.journal import Journal, check_no_journal, journal_path
from mft_eval.scoring.results import make_header, make_results, problem_entry

DEFAULT_KS = (1, 10, 100)
Sample = tuple[str, int]


@dataclass(frozen=True, slots=True)
class ScoreOptions:
    """How `score` works; `part` is (which, of how many)."""

    ks: tuple[int, ...] | None
    limits: Limits
    num_workers: int
    partial: bool
    allow_broken: bool
    part: tuple[int, int]
    overwrite: bool
    resume: bool
    kind: TaskKind
    isolation: Isolation


def score(
    problems: str, generations: str, out: str, options: ScoreOptions, pool: JudgePool
) -> tuple[dict[str, Any], "Run"]:
    """The results of judging the generations in a file (`-` for stdin) on the `problems` by `pool`, and the run.

    The run is to be finished once the results are written to `out` (`-` for stdout).
    """
    if out != "-":
        check_no_journal(out, resume=options.resume, overwrite=options.overwrite)
    check_output(out, overwrite=options.overwrite)
    problem_set = read_problems(problems)
    given = read_generations(generations, {problem.problem_id for problem in problem_set.problems})
    if options.kind.name != "plain":
        problem_set = _of_kind(problem_set, given, options)
    _check_complete(problem_set, given, options.partial)
    ks = choose_ks(options.ks, given)
    which, num_parts = options.part
    header = make_header(problem_set, given, _settings(options, ks))
    part = list(enumerate(problem_set.problems))[which - 1 :: num_parts]
    chosen = [(index, problem) for index, problem in part if problem.problem_id in given.completions]
    for language in sorted({problem.language for _, problem in chosen}):
        check_toolchain(language)
    journal = Journal(journal_path(out), header, resume=options.resume) if out != "-" else None
    try:
        rulings_path = cache_path(problem_set, options.limits, options.kind.name, options.isolation.walls)
        run = Run(given, options, journal)
        run.judge([problem for _, problem in chosen], rulings_path, pool)
    except BaseException:
        if journal is not None:
            journal.close(is_finished=False)
        raise
    return _results(header, part, chosen, run), run


def _of_kind(problem_set: ProblemSet, given: Generations, options: ScoreOptions) -> ProblemSet:
    """The problems made into the kind of task that was asked for; those without a generation only if all are needed."""
    chosen = [p for p in problem_set.problems if not options.partial or p.problem_id in given.completions]
    kind = options.kind.name
    if kind == "explain" and options.kind.explanations is None:
        raise EvalError("a program of the kind explain is written from an explanation", fix="give --explanations")
    made = problems_of_kind(chosen, options.kind, options.num_workers, options.isolation)
    unknown = sorted(given.completions.keys() - {problem.problem_id for problem in made})
    if unknown:
        what = f'problem "{unknown[0]}" cannot be made into the kind {kind}'
        raise EvalError(what, fix=f"generate from mft-eval problems --kind {kind}")
    return replace(problem_set, name=f"{problem_set.name} ({kind})", problems=tuple(made))


def _settings(options: ScoreOptions, ks: tuple[int, ...]) -> dict[str, Any]:
    which, num_parts = options.part
    return {
        "timeout_seconds": options.limits.timeout_seconds,
        "memory_mb": options.limits.memory_mb,
        "isolation": options.isolation.name,
        "walls": options.isolation.walls,
        "missing_layers": list(options.isolation.missing_layers),
        "ks": list(ks),
        "part": f"{which}/{num_parts}",
        "kind": options.kind.name,
        "explanations_sha256": options.kind.explanations_sha256,
    }


def _results(
    header: dict[str, Any], part: Sequence[tuple[int, Problem]], chosen: Sequence[tuple[int, Problem]], run: "Run"
) -> dict[str, Any]:
    rulings = [(index, problem, run.rulings[problem.problem_id]) for index, problem in chosen]
    broken = [
        {"index": index, "problem_id": problem.problem_id, "fault": ruling.fault}
        for index, problem, ruling in rulings
        if ruling.fault
    ]
    entries = [
        problem_entry(index, problem, ruling, run.judgements, run.given.completions[problem.problem_id])
        for index, problem, ruling in rulings
        if not ruling.fault
    ]
    if not entries:
        raise EvalError("no problem is left to score", fix="give generations for more problems, or mend the problems")
    return make_results(header, entries, broken, len(part) - len(chosen))


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


def _check_complete(problem_set: ProblemSet, generations: Generations, partial: bool) -> None:
    missing = [
        problem.problem_id for problem in problem_set.problems if problem.problem_id not in generations.completions
    ]
    if missing and not partial:
        share = f"{len(missing)} of {counted(len(problem_set.problems), 'problem')}"
        what = f'{share} {verb(len(missing), "has", "have")} no generation, the first is "{missing[0]}"'
        raise EvalError(what, fix="generate them or leave them out of the mean with --partial")


class Run:
    """The judging of one run: what its journal already holds is not judged again."""

    def __init__(self, given: Generations, options: ScoreOptions, journal: Journal | None) -> None:
        self.given = given
        self.options = options
        self.journal = journal
        self.rulings: dict[str, Ruling] = dict(journal.rulings) if journal else {}
        self.judgements: dict[Sample, Judgement] = dict(journal.judgements) if journal else {}

    def finish(self) -> None:
        """Drops the journal: the results are written."""
        if self.journal:
            self.journal.close(is_finished=True)

    def judge(self, problems: list[Problem], rulings_path: Path, pool: JudgePool) -> None:
        """Fills rulings and judgements for `problems`; raises where a reference passes nowhere."""
        cached = read_rulings(rulings_path)
        for problem in problems:
            if problem.problem_id in cached:
                self.rulings.setdefault(problem.problem_id, cached[problem.problem_id])
        by_id = {problem.problem_id: problem for problem in problems}
        unruled = [problem for problem in problems if problem.problem_id not in self.rulings]
        samples = [(problem_id, index) for problem_id in by_id for index in sorted(self.given.completions[problem_id])]
        unjudged = [sample for sample in samples if sample not in self.judgements]
        if not unruled and not unjudged:
            return
        with Progress(len(unruled) + len(unjudged)) as progress:
            check_pool(self.options.isolation, pool)
            for problem_id, ruling in rule(unruled, pool, self.options.limits, progress.count).items():
                self.rulings[problem_id] = ruling
                if self.journal:
                    self.journal.add_ruling(problem_id, ruling)
            if unruled:
                write_rulings(rulings_path, cached | self.rulings)
            self._check_faults()
            left = [(by_id[problem_id], index) for problem_id, index in unjudged if not self.rulings[problem_id].fault]
            self._judge_samples(left, pool, progress)

    def _judge_samples(self, samples: list[tuple[Problem, int]], pool: JudgePool, progress: Progress) -> None:
        failed: dict[Sample, tuple[Problem, Judgement]] = {}
        for (problem, index), judgement in self._settled(samples, pool, progress.count):
            if problem.base_test is not None and problem.base_test != problem.test and judgement.verdict != "passed":
                failed[problem.problem_id, index] = (problem, judgement)
            else:
                base_verdict = "" if problem.base_test is None else judgement.verdict
                self._keep(problem, index, replace(judgement, base_verdict=base_verdict))
        # What passes all of a test passes its base; of the others it is tried by itself, with the whole time limit.
        bases = [(replace(problem, test=problem.base_test), index) for (_, index), (problem, _) in failed.items()]
        for (base, index), found in self._settled(bases, pool, lambda _: None):
            problem, judgement = failed[base.problem_id, index]
            self._keep(problem, index, replace(judgement, base_verdict=found.verdict))

    def _settled(
        self, samples: list[tuple[Problem, int]], pool: JudgePool, progressed: Callable[[str], None]
    ) -> Iterator[tuple[tuple[Problem, int], Judgement]]:
        """Each sample's judgement; those that ran out of time come last, judged again by themselves."""
        late = []
        for item, judgement in self._judged(samples, pool):
            progressed(judgement.verdict)
            if judgement.verdict == "timeout":
                late.append(item)
            else:
                yield item, judgement
        yield from self._judged(sorted(late, key=_order), pool, num_workers=1)

    def _check_faults(self) -> None:
        faults = {problem_id: ruling.fault for problem_id, ruling in self.rulings.items() if ruling.fault}
        if faults and not self.options.allow_broken:
            problem_id, fault = min(faults.items())
            what = f'{counted(len(faults), "problem")} cannot be judged, the first is "{problem_id}": {fault}'
            raise EvalError(what, fix="mend them, raise --timeout, or leave them out of the mean with --allow-broken")

    def _judged(
        self, samples: list[tuple[Problem, int]], pool: JudgePool, num_workers: int | None = None
    ) -> Iterator[tuple[tuple[Problem, int], Judgement]]:
        requests = (((problem, index), self._request(problem, index)) for problem, index in samples)
        for (problem, index), outcome in pool.judge_all(requests, num_workers=num_workers):
            yield (problem, index), read_outcome(outcome, problem, self.rulings[problem.problem_id], pool.walls)

    def _request(self, problem: Problem, index: int) -> dict[str, Any]:
        program = make_program(self.given.completions[problem.problem_id][index], problem)
        return make_request(problem, program, self.rulings[problem.problem_id], self.options.limits)

    def _keep(self, problem: Problem, index: int, judgement: Judgement) -> None:
        self.judgements[problem.problem_id, index] = judgement
        if self.journal:
            self.journal.add_judgement(problem.problem_id, index, judgement)


def encode_timings(run: Run) -> bytes:
    """The timings file: the seconds of every sample, which are never twice the same, kept out of the results."""
    lines = []
    for (problem_id, sample_index), judgement in sorted(run.judgements.items()):
        sample = {"problem_id": problem_id, "sample_index": sample_index, "seconds": round(judgement.seconds, 3)}
        lines.append(orjson.dumps(sample, option=orjson.OPT_APPEND_NEWLINE))
    return b"".join(lines)


def _order(item: tuple[Problem, int]) -> Sample:
    return item[0].problem_id, item[1]
