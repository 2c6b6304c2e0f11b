"""Scoring what cannot be executed: texts against references, and models against the first."""

import hashlib
import random
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import orjson

from mft_eval.commands.counted import counted, verb
from mft_eval.errors import EvalError
from mft_eval.generations.extraction import drop_thinking
from mft_eval.generations.reading import read_generations
from mft_eval.scoring.tables import TABLES
from mft_eval.scoring.text_similarity import MEASURES, Measure, Statistics, added

NUM_RESAMPLES = 1000
# Of chrF or BLEU: smaller differences have been found to mean nothing to people.
DECIDED_POINTS = 2.0


def read_references(path: str) -> dict[str, str]:
    """The `reference` text of each `problem_id` in a JSONL file."""
    try:
        stored = Path(path).read_bytes()
    except OSError as error:
        raise EvalError(f"cannot read the references: {error.strerror}", where=path) from error
    references: dict[str, str] = {}
    for number, line in enumerate(stored.removesuffix(b"\n").split(b"\n"), start=1):
        where = f"{path} line {number}"
        try:
            record = orjson.loads(line)
        except orjson.JSONDecodeError as error:
            raise EvalError(f"not a JSON object: {error}", where=where) from error
        fields = [record.get(key) if isinstance(record, dict) else None for key in ("problem_id", "reference")]
        if not isinstance(fields[0], str) or not isinstance(fields[1], str):
            raise EvalError('not an object with text under "problem_id" and "reference"', where=where)
        if fields[0] in references:
            raise EvalError(f'problem "{fields[0]}" is there twice', where=where)
        references[fields[0]] = fields[1]
    return references


def score_texts(references_path: str, paths: Sequence[str]) -> dict[str, Any]:
    """Scores of each generations file, and for each but the first the paired bootstrap against the first."""
    references = read_references(references_path)
    every = {path: _pairs(path, references) for path in paths}
    sums = {
        path: {name: [measure.statistics(*pair) for pair in pairs] for name, measure in MEASURES.items()}
        for path, pairs in every.items()
    }
    first = sums[paths[0]]
    return {
        "references_sha256": hashlib.sha256(Path(references_path).read_bytes()).hexdigest(),
        "num_problems": len(references),
        "models": {
            path: {name: measure.score(added(found[name])) for name, measure in MEASURES.items()}
            for path, found in sums.items()
        },
        "against": paths[0],
        "comparisons": {
            path: {name: compare_texts(measure, first[name], sums[path][name]) for name, measure in MEASURES.items()}
            for path in paths[1:]
        },
    }


def _pairs(path: str, references: Mapping[str, str]) -> list[tuple[str, str]]:
    completions = read_generations(path, references).completions
    missing = [problem_id for problem_id in references if problem_id not in completions]
    if missing:
        what = f"{counted(len(missing), 'reference')} {verb(len(missing), 'has', 'have')} no text"
        raise EvalError(f'{what}, the first is "{missing[0]}"', where=path)
    several = [problem_id for problem_id, samples in completions.items() if len(samples) > 1]
    if several:
        raise EvalError(f'problem "{several[0]}" has several samples', where=path, fix="give one of each")
    return [
        (drop_thinking(next(iter(completions[problem_id].values())).text), reference)
        for problem_id, reference in references.items()
    ]


def compare_texts(measure: Measure, first: Sequence[Statistics], other: Sequence[Statistics]) -> dict[str, Any]:
    """Difference of the other's score, its p-value by paired bootstrap over problems, and whether it is decided.

    Source: P. Koehn, Statistical significance tests for machine translation evaluation, 2004.
    """
    difference = measure.score(added(other)) - measure.score(added(first))
    draw = random.Random(0)
    num_reversed = 0
    for _ in range(NUM_RESAMPLES):
        chosen = draw.choices(range(len(first)), k=len(first))
        left, right = (measure.score(added([side[index] for index in chosen])) for side in (first, other))
        num_reversed += (right - left) * difference <= 0
    p_value = (num_reversed + 1) / (NUM_RESAMPLES + 1)
    is_decided = abs(difference) >= DECIDED_POINTS and p_value < 0.05
    return {"difference": difference, "p_value": p_value, "is_decided": is_decided}


def show_texts(scored: dict[str, Any], style: str) -> str:
    """The scores as a table, then what the differences from the first mean."""
    names = list(MEASURES)
    rows = [[path, *(f"{scores[name]:.2f}" for name in names)] for path, scores in scored["models"].items()]
    text = TABLES[style](["generations", *names], rows)
    rows = [
        [path, name, f"{found['difference']:+.2f}", f"{found['p_value']:.3f}", _word(found)]
        for path, comparison in scored["comparisons"].items()
        for name, found in comparison.items()
    ]
    head = [f"against {scored['against']}", "measure", "difference", "p", ""]
    return text + ("\n" + TABLES[style](head, rows) if rows else "")


def _word(found: dict[str, Any]) -> str:
    return "decided" if found["is_decided"] else "undecided"
