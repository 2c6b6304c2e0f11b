"""Generations: the completions of a model, read from JSONL."""

import hashlib
import sys
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

import orjson

from mft_eval.errors import EvalError


@dataclass(frozen=True, slots=True)
class Generations:
    """Completions by problem and sample index; `sha256` is of the bytes read."""

    sha256: str
    completions: dict[str, dict[int, str]]


def read_generations(source: str, problem_ids: Collection[str]) -> Generations:
    """The generations in the file `source`, `-` for stdin; every problem must be one of `problem_ids`."""
    try:
        stored = sys.stdin.buffer.read() if source == "-" else Path(source).read_bytes()
    except OSError as error:
        raise EvalError(f"cannot read the generations: {error.strerror}", where=source) from error
    name = "stdin" if source == "-" else source
    completions: dict[str, dict[int, str]] = {}
    if not stored:
        raise EvalError("no generations", where=name)
    for number, line in enumerate(stored.removesuffix(b"\n").split(b"\n"), start=1):
        where = f"{name} line {number}"
        problem_id, sample_index, completion = _parse(line, where)
        if problem_id not in problem_ids:
            raise EvalError(
                f'unknown problem "{problem_id}"', where=where, fix="give the problems it was generated from"
            )
        samples = completions.setdefault(problem_id, {})
        if sample_index in samples:
            raise EvalError(f'sample {sample_index} of problem "{problem_id}" is there twice', where=where)
        samples[sample_index] = completion
    return Generations(hashlib.sha256(stored).hexdigest(), completions)


def _parse(line: bytes, where: str) -> tuple[str, int, str]:
    try:
        record = orjson.loads(line)
    except orjson.JSONDecodeError as error:
        raise EvalError(f"not a JSON object: {error}", where=where) from error
    if not isinstance(record, dict):
        raise EvalError("not a JSON object", where=where)
    problem_id, sample_index, completion = map(record.get, ("problem_id", "sample_index", "completion"))
    if not isinstance(problem_id, str):
        raise EvalError('"problem_id" is not text', where=where)
    if isinstance(sample_index, bool) or not isinstance(sample_index, int) or sample_index < 0:
        raise EvalError('"sample_index" is not an integer from 0', where=where)
    if not isinstance(completion, str):
        raise EvalError('"completion" is not text', where=where)
    return problem_id, sample_index, completion
