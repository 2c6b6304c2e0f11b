"""Unit-test generation: a model is shown a function and writes its tests, which have to tell it from mutants."""

from collections.abc import Sequence
from dataclasses import replace

from mft_eval.problems.fields import user_message
from mft_eval.problems.problem import Problem, PythonTest

# With fewer than the least, tests that fail at random would pass too often.
LEAST_MUTANTS, MOST_MUTANTS = 2, 5
_ASK = (
    "Write tests for the Python function `{}`: assertions that call it by its name, in one fenced Python block. "
    "Use the standard library only and do not repeat the function."
)
_WRAPPER = """SCRIPT = {!r}


def run(name, function):
    names = {{"__name__": "tests", name: function}}
    exec(compile(SCRIPT, "<tests>", "exec"), names)
    for name, test in list(names.items()):
        if name.startswith("test_") and callable(test):
            test()
"""


def unit_test_problem(problem: Problem, mutants: Sequence[str]) -> Problem:
    """The problem that asks for tests of the reference of a Python problem; its own test is the new reference."""
    if not isinstance(problem.test, PythonTest):
        raise TypeError("unit tests are written for Python functions")
    script = (
        "from mft_eval.judging.unit_tests import check_tests\n"
        f"check_tests(run, globals(), entry_point={problem.entry_point!r}, reference={problem.reference!r}, "
        f"mutants={list(mutants)!r}, measures=__measures__)\n"
    )
    ask = _ASK.format(problem.entry_point)
    return replace(
        problem,
        messages=user_message(f"{ask}\n\n```python\n{problem.reference.strip()}\n```"),
        prompt_code="",
        test=PythonTest("run", script),
        reference=wrap_tests(problem.test.preamble + problem.test.script),
        is_for_tests=True,
        base_test=None,
    )


def wrap_tests(script: str) -> str:
    """The program that runs a test script over a function, pytest's functions included."""
    return _WRAPPER.format(script)
