"""The results artifact: what it holds, and how it is written."""

import os
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from platform import python_version
from typing import Any

import orjson

from mft_eval.errors import EvalError
from mft_eval.generations.reading import Generations
from mft_eval.judging.program_judge import VERDICTS, Judgement, Limits
from mft_eval.problems.reading import ProblemSet
from mft_eval.scoring.pass_at_k import mean_pass_at_k


def make_results(
    problem_set: ProblemSet,
    generations: Generations,
    judgements: Mapping[tuple[str, int], Judgement],
    ks: tuple[int, ...],
    limits: Limits,
) -> dict[str, Any]:
    """The results object; `judgements` are by problem id and sample index. Problems are in their source's order."""
    problems = []
    for problem in problem_set.problems:
        sample_indices = sorted(generations.completions.get(problem.problem_id, {}))
        samples = [_sample(index, judgements[problem.problem_id, index]) for index in sample_indices]
        if samples:
            num_correct = sum(sample["verdict"] == "passed" for sample in samples)
            counts = {"num_samples": len(samples), "num_correct": num_correct}
            problems.append({"problem_id": problem.problem_id, **counts, "samples": samples})
    counts = [(problem["num_samples"], problem["num_correct"]) for problem in problems]
    verdicts = [judgement.verdict for judgement in judgements.values()]
    return {
        "format_version": "1",
        "producer": f"mft-eval {version('mft-eval')}",
        "problems_source": {
            "name": problem_set.name,
            "sha256": problem_set.sha256,
            "num_problems": len(problem_set.problems),
        },
        "generations_source": {"sha256": generations.sha256},
        "settings": {
            "timeout_seconds": limits.timeout_seconds,
            "memory_mb": limits.memory_mb,
            "python": python_version(),
        },
        "num_missing": len(problem_set.problems) - len(problems),
        "pass_at_k": {f"pass@{k}": mean_pass_at_k(counts, k) for k in ks},
        "verdicts": {verdict: verdicts.count(verdict) for verdict in VERDICTS},
        "problems": problems,
    }


def _sample(sample_index: int, judgement: Judgement) -> dict[str, Any]:
    return {
        "sample_index": sample_index,
        "verdict": judgement.verdict,
        "detail": judgement.detail,
        "mode": judgement.mode,
        "seconds": round(judgement.seconds, 3),
    }


def check_output(out: str, *, overwrite: bool) -> None:
    """Raises, before any work, if the results could not be written to `out`."""
    path = Path(out)
    if out == "-":
        return
    if path.is_dir():
        raise EvalError(f"{out} is a directory", fix="name a file")
    if path.exists() and not overwrite:
        raise EvalError(f"{out} exists", fix="choose another name or use --overwrite")
    if not path.parent.is_dir():
        raise EvalError(f"the directory {path.parent} does not exist", fix="make it first")


def encode_results(results: dict[str, Any]) -> bytes:
    """The bytes of the results file."""
    return orjson.dumps(results, option=orjson.OPT_INDENT_2 | orjson.OPT_APPEND_NEWLINE)


def write_file(content: bytes, out: str) -> None:
    """Writes `content` to the file `out`, whole or not at all."""
    path = Path(out)
    partial = path.with_name(f".{path.name}.partial-{os.getpid()}")
    try:
        with partial.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
    except OSError as error:
        partial.unlink(missing_ok=True)
        raise EvalError(f"cannot write the results: {error.strerror}", where=out) from error
