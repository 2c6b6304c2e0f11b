"""What else is measured of a sample beside its verdict: how near its text is to the expected one."""

import math
from collections.abc import Sequence
from typing import Any

from mft_eval.generations.extraction import extract_infill
from mft_eval.generations.reading import Completion
from mft_eval.problems.infilling import hidden_lines
from mft_eval.problems.problem import Problem
from mft_eval.problems.program import make_program
from mft_eval.scoring.text_similarity import MEASURES, edit_similarity


def text_measures(problem: Problem, completion: Completion) -> dict[str, float]:
    """`exact_match` and `edit_similarity`, from 0 to 1, of lines that fill a gap; `chrf`, from 0 to 100, of a
    translation against the reference, and of the explanation that a program was written from against the docstring.
    """
    if problem.suffix_code is not None:
        filled, hidden = extract_infill(completion.text, problem.prompt_code).strip(), hidden_lines(problem).strip()
        return {"exact_match": float(filled == hidden), "edit_similarity": edit_similarity(filled, hidden)}
    if problem.explanation is not None:
        return {"chrf": MEASURES["chrf"].of([(problem.explanation, problem.docstring)])}
    if problem.is_translation and problem.reference:
        return {"chrf": MEASURES["chrf"].of([(make_program(completion, problem), problem.reference)])}
    return {}


def mean_measures(problems: Sequence[dict[str, Any]]) -> dict[str, float]:
    """Of each measure the mean over problems of the mean over their samples; a sample that lacks one counts as 0."""
    names = sorted({name for problem in problems for sample in problem["samples"] for name in sample["measures"]})
    return {name: math.fsum(_mean(problem, name) for problem in problems) / len(problems) for name in names}


def _mean(problem: dict[str, Any], name: str) -> float:
    return math.fsum(sample["measures"].get(name, 0.0) for sample in problem["samples"]) / problem["num_samples"]
