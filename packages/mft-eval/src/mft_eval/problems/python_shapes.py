"""Problems whose program is Python functions: HumanEval's and MBPP's shapes, and EvalPlus's, which has inputs only."""

import ast
import json
from typing import Any

from mft_eval.errors import EvalError
from mft_eval.generations.extraction import preamble_of
from mft_eval.problems.evalplus_inputs import STEPS_BY_TASK
from mft_eval.problems.fields import task_id, text, texts, user_message
from mft_eval.problems.problem import Problem, PythonTest

_COMPLETE = "Complete this Python function. Answer with the whole function in one fenced Python block."
_SHOWN_TESTS = "Answer with a Python function in one fenced Python block. It has to pass these tests:"


def humaneval_problem(record: dict[str, Any], where: str) -> Problem:
    """HumanEval's shape: a prompt to continue and a `check(candidate)`."""
    prompt, entry_point = text(record, "prompt", where), text(record, "entry_point", where)
    script = f"{text(record, 'test', where)}\n\ncheck({entry_point})\n"
    return Problem(
        problem_id=task_id(record, where),
        messages=user_message(f"{_COMPLETE}\n\n```python\n{prompt.strip()}\n```"),
        prompt_code=prompt,
        test=PythonTest(entry_point, script, preamble_of(prompt, entry_point)),
        reference=prompt + text(record, "canonical_solution", where),
        # HumanEvalPack's files are of this shape, with a bug to find.
        buggy=prompt + text(record, "buggy_solution", where) if "buggy_solution" in record else "",
    )


def mbpp_problem(record: dict[str, Any], where: str) -> Problem:
    """MBPP's shape, full or sanitized: a sentence, assertions and a solution."""
    task = text(record, "prompt" if "prompt" in record else "text", where)
    tests, code = texts(record, "test_list", where), text(record, "code", where)
    setup = text(record, "test_setup_code", where, "")
    shown = "\n".join(tests)
    script = "\n".join([*texts(record, "test_imports", where), setup, *tests]) + "\n"
    return Problem(
        problem_id=task_id(record, where),
        messages=user_message(f"{task.strip()}\n\n{_SHOWN_TESTS}\n\n```python\n{shown}\n```"),
        prompt_code="",
        test=PythonTest(_tested_function(code, tests, where), script),
        reference=code,
    )


def evalplus_problem(record: dict[str, Any], where: str) -> Problem:
    """EvalPlus's shape: on every base and plus input the program must do what the reference does; base ones also count
    by themselves.
    """
    prompt, entry_point = text(record, "prompt", where), text(record, "entry_point", where)
    name, solution = task_id(record, where), text(record, "canonical_solution", where)
    base, plus = _inputs(record, "base_input", where), _inputs(record, "plus_input", where)
    atol = record.get("atol", 0)
    if isinstance(atol, bool) or not isinstance(atol, (int, float)):
        raise EvalError('"atol" is not a number', where=where)
    is_mbpp = name.startswith("Mbpp/")
    reference = solution if is_mbpp else prompt + solution
    if is_mbpp:
        shown = text(record, "assertion", where, "").strip()
        words = prompt.strip().strip("\"'").strip()
        messages = user_message(f"{words}\n\n{_SHOWN_TESTS}\n\n```python\n{shown}\n```")
    else:
        messages = user_message(f"{_COMPLETE}\n\n```python\n{prompt.strip()}\n```")
    check = {
        "steps": STEPS_BY_TASK.get(name, ()),
        "reference": reference,
        "entry_point": entry_point,
        "atol": float(atol),
        "is_mbpp": is_mbpp,
    }
    preamble = "" if is_mbpp else preamble_of(prompt, entry_point)
    return Problem(
        problem_id=name,
        messages=messages,
        prompt_code="" if is_mbpp else prompt,
        test=PythonTest(
            entry_point, _check_script(entry_point, {"inputs": json.dumps([*base, *plus]), **check}), preamble
        ),
        reference=reference,
        base_test=PythonTest(entry_point, _check_script(entry_point, {"inputs": json.dumps(base), **check}), preamble),
    )


def _check_script(entry_point: str, check: dict[str, Any]) -> str:
    arguments = ", ".join(f"{key}={value!r}" for key, value in check.items())
    return f"from mft_eval.judging.differential import check_inputs\ncheck_inputs({entry_point}, {arguments})\n"


def _inputs(record: dict[str, Any], key: str, where: str) -> list[Any]:
    # A released file has {} where a problem has no plus inputs.
    inputs = record.get(key) or []
    if not isinstance(inputs, list) or not all(isinstance(arguments, list) for arguments in inputs):
        raise EvalError(f'"{key}" is not a list of lists of arguments', where=where)
    return inputs


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
