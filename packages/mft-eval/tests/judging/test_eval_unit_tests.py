"""Unit tests that a model wrote: good ones pass, and hostile ones cannot tell what they are shown."""

import textwrap

import pytest

from mft_eval.problems.problem import Problem, PythonTest
from mft_eval.problems.unit_tests import unit_test_problem, wrap_tests

REFERENCE = "def clamp(x, low, high):\n    return max(low, min(x, high))\n"
MUTANTS = [
    "def clamp(x, low, high):\n    return None\n",
    "def clamp(x, low, high):\n    return min(low, min(x, high))\n",
    "def clamp(x, low, high):\n    return max(low, max(x, high))\n",
    "def clamp(x, low, high):\n    raise KeyError\n",
]
OWN = "assert clamp(5, 0, 3) == 3\nassert clamp(-5, 0, 3) == 0\nassert clamp(2, 0, 3) == 2\n"
PROBLEM = unit_test_problem(Problem("p", (), "", PythonTest("clamp", OWN), REFERENCE), MUTANTS)

GOOD = {
    "assertions": OWN,
    "functions of pytest's": "def test_high():\n    assert clamp(5, 0, 3) == 3\n"
    "def test_low():\n    assert clamp(-5, 0, 3) == 0",
    "a loop": "for x, y in ((5, 3), (-5, 0), (2, 2)):\n    assert clamp(x, 0, 3) == y, x",
    "a raise": "if [clamp(x, 0, 3) for x in (5, -5, 2)] != [3, 0, 2]:\n    raise ValueError",
    "an exit": "import sys\nif [clamp(x, 0, 3) for x in (5, -5)] != [3, 0]:\n    raise Exception('no')",
}
HOSTILE = {
    "is empty": ("", "wrong"),
    "asserts nothing": ("assert True", "wrong"),
    "always fails": ("assert False", "wrong"),
    "is wrong about the reference": ("assert clamp(5, 0, 3) == 5", "wrong"),
    "misses mutants": ("assert clamp(2, 0, 3) is not None", "wrong"),
    "does not parse": ("assert (", "wrong"),
    "fails at random": ("import random\nassert random.SystemRandom().random() < 0.5", "wrong"),
    "fails every second time": (
        "import builtins\nbuiltins.n = getattr(builtins, 'n', 0) + 1\nassert builtins.n % 2",
        "wrong",
    ),
    "passes the first time": ("import os\nif os.path.exists('/tmp/x'): raise ValueError\nopen('/tmp/x', 'w')", "wrong"),
    "looks at the source": ("import inspect\nassert 'max' in inspect.getsource(clamp)", "wrong"),
    "looks at the code": ("assert clamp.__code__.co_names == ('max', 'min')", "wrong"),
    "looks at the globals": ("assert not clamp.__globals__", "wrong"),
    "compares handles": ("assert clamp == clamp and str(clamp) and hash(clamp)", "wrong"),
    "leaves": ("import os\nos._exit(0)", "killed"),
    "exits": ("import sys\nsys.exit(0)", "exception"),
    "interrupts": ("raise KeyboardInterrupt", "exception"),
    "never ends": ("while True: pass", "timeout"),
    "calls for ever": ("while True: clamp(1, 2, 3)", "timeout"),
    "replaces the runner": ("import program\nprogram.run = lambda *a: None", "wrong"),
    "replaces the function": ("clamp = lambda *a: 3\nassert clamp(5, 0, 3) == 3", "wrong"),
    "reads frames": (
        """
        import sys
        frame = sys._getframe()
        found = []
        while frame:
            found += [v for v in frame.f_locals.values() if isinstance(v, str) and "max(low" in v]
            frame = frame.f_back
        assert not found
        """,
        "wrong",
    ),
    "searches memory": ("import gc\nassert not [o for o in gc.get_objects() if 'max(low' in str(o)[:99]]", "wrong"),
    "writes to the pipe": (
        "import os\nfor n in range(3, 99):\n    try: os.write(n, b'\\xff' * 64)\n    except OSError: pass",
        "refused",
    ),
    "gives it something monstrous": (
        "class A:\n    def __lt__(self, o): raise SystemExit\n    __gt__ = __lt__\nclamp(A(), A(), A())",
        "wrong",
    ),
}


@pytest.mark.parametrize("name", GOOD)
def test_good_tests_pass_as(judge_problem, name):
    judgement = judge_problem(PROBLEM, wrap_tests(GOOD[name]))
    assert (judgement.verdict, judgement.mode, judgement.untrusted) == ("passed", "outside", ""), judgement


@pytest.mark.parametrize("name", HOSTILE)
def test_the_judge_is_not_fooled_by_a_test_that(judge_problem, name):
    script, verdict = HOSTILE[name]
    judgement = judge_problem(PROBLEM, wrap_tests(textwrap.dedent(script)))
    assert judgement.verdict in (verdict, "exception"), judgement
    assert judgement.verdict != "passed"


def test_what_is_missing_is_told(judge_problem):
    judgement = judge_problem(PROBLEM, wrap_tests("assert clamp(2, 0, 3) is not None"))
    assert judgement.detail == "2 of 4 mutants killed"
    assert judgement.measures == {"branch_coverage": 1.0, "mutants_killed": 0.5}
    assert judge_problem(PROBLEM, wrap_tests("")).measures == {"branch_coverage": 0.0, "mutants_killed": 0.0}
    assert judge_problem(PROBLEM, wrap_tests("assert clamp(5, 0, 3) == 5")).detail == "fails on the reference"
