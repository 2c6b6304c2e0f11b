"""Contest problems, answered by a whole program or by a method: LiveCodeBench's and APPS's shapes."""

import base64
import io
import json
import pickle
import zlib
from typing import Any, NoReturn

from mft_eval.errors import EvalError
from mft_eval.problems.fields import text, user_message
from mft_eval.problems.problem import InputOutputTest, Problem, PythonTest

_READ = "Answer with a whole Python program in one fenced Python block, which reads from stdin and writes to stdout."
_FILL = "Answer with the whole of this code, filled in, in one fenced Python block:"


def livecodebench_problem(record: dict[str, Any], where: str) -> Problem:
    """LiveCodeBench's shape; private test cases may be packed as its files have them."""
    public = _json(text(record, "public_test_cases", where), "public_test_cases", where)
    hidden = _unpacked(text(record, "private_test_cases", where, "[]"), where)
    cases = [_case(case, where) for case in [*public, *hidden]]
    starter = text(record, "starter_code", where, "")
    if not cases or len({kind for _, _, kind in cases}) > 1:
        raise EvalError("a problem needs test cases, all of one testtype", where=where)
    test: PythonTest | InputOutputTest = InputOutputTest(tuple((given, expected) for given, expected, _ in cases))
    if cases[0][2] == "functional":
        metadata = _json(text(record, "metadata", where, "{}"), "metadata", where)
        name = metadata.get("func_name") if isinstance(metadata, dict) else None
        test = _method_test(name, [_call(given, expected, where) for given, expected, _ in cases], where)
    return Problem(
        problem_id=text(record, "question_id", where),
        messages=_asked(text(record, "question_content", where), starter),
        prompt_code="",
        test=test,
        reference="",
        tags=_tags(record, ("platform", "difficulty")),
    )


def apps_problem(record: dict[str, Any], where: str) -> Problem:
    """APPS's shape; its first solution is the reference."""
    cases = _json(text(record, "input_output", where), "input_output", where)
    inputs, outputs = cases.get("inputs"), cases.get("outputs")
    if not isinstance(inputs, list) or not isinstance(outputs, list) or len(inputs) != len(outputs) or not inputs:
        raise EvalError('"input_output" has no inputs and outputs of one length', where=where)
    solutions = _json(text(record, "solutions", where) or "[]", "solutions", where)
    problem_id = record.get("problem_id", record.get("id"))
    if isinstance(problem_id, bool) or not isinstance(problem_id, (str, int)):
        raise EvalError('there is no "problem_id" or "id"', where=where)
    if "fn_name" in cases:
        pairs = list(zip(inputs, outputs, strict=True))
        test: PythonTest | InputOutputTest = _method_test(cases["fn_name"], pairs, where)
    else:
        test = InputOutputTest(tuple((_lines(given), _lines(out)) for given, out in zip(inputs, outputs, strict=True)))
    return Problem(
        problem_id=str(problem_id),
        messages=_asked(text(record, "question", where), text(record, "starter_code", where, "")),
        prompt_code="",
        test=test,
        reference=solutions[0] if solutions else "",
        tags=_tags(record, ("difficulty",)),
    )


def _case(case: Any, where: str) -> tuple[str, str, str]:
    match case:
        case {"input": str(given), "output": str(expected), "testtype": str(kind)}:
            return given, expected, kind
    raise EvalError('a test case has no text under "input", "output" and "testtype"', where=where)


def _call(given: str, expected: str, where: str) -> tuple[list[Any], Any]:
    """The arguments, one in each line, and the result."""
    try:
        return list(map(json.loads, given.split("\n"))), json.loads(expected)
    except ValueError as error:
        raise EvalError(f"a test case is not JSON: {error}", where=where) from error


def _method_test(name: Any, calls: list[tuple[Any, Any]], where: str) -> PythonTest:
    """A test of the method `name` of a class Solution; a result may be written as the only item of a list."""
    if not isinstance(name, str) or not name.isidentifier():
        raise EvalError(f'"{name}" is not the name of a method', where=where)
    lines = [
        f"found, expected = Solution().{name}(*{arguments!r}), {expected!r}\n"
        "found = list(found) if isinstance(found, tuple) else found\n"
        "assert found == expected or [found] == expected\n"
        for arguments, expected in calls
    ]
    return PythonTest("Solution", "".join(lines))


def _asked(question: str, starter: str) -> tuple[dict[str, str], ...]:
    if not starter.strip():
        return user_message(f"{question.strip()}\n\n{_READ}")
    return user_message(f"{question.strip()}\n\n{_FILL}\n\n```python\n{starter.strip()}\n```")


def _json(packed: str, key: str, where: str) -> Any:
    try:
        return json.loads(packed)
    except ValueError as error:
        raise EvalError(f'"{key}" is not JSON: {error}', where=where) from error


def _unpacked(packed: str, where: str) -> Any:
    """The test cases in JSON, or in JSON within a pickle within zlib within base64, of which nothing is run."""
    try:
        return json.loads(packed)
    except ValueError:
        pass
    try:
        content = zlib.decompress(base64.b64decode(packed, validate=True))
        return json.loads(_TextUnpickler(io.BytesIO(content)).load())
    except (ValueError, zlib.error, pickle.UnpicklingError, TypeError) as error:
        raise EvalError('"private_test_cases" cannot be unpacked', where=where) from error


class _TextUnpickler(pickle.Unpickler):
    """Unpickles text; a pickle that asks for anything that could do something is refused."""

    def find_class(self, module: str, name: str) -> NoReturn:
        raise pickle.UnpicklingError(f"{module}.{name}")


def _lines(given: Any) -> str:
    return given if isinstance(given, str) else "\n".join(map(str, given))


def _tags(record: dict[str, Any], keys: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(sorted({record[key] for key in keys if isinstance(record.get(key), str) and record[key]}))
