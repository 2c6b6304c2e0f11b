"""What a reference decides for the programs of its problem."""

from mft_eval.judging.gate import rule
from mft_eval.judging.judgement import Limits
from mft_eval.problems.problem import Problem, PythonTest

SQUARE = "def f(x): return x * x"


def problem(name, test, reference=SQUARE):
    return Problem(name, (), "", PythonTest("f", test), reference)


def test_rulings_follow_the_references(pool):
    verdicts = []
    problems = [
        problem("plain", "assert f(2) == 4"),
        problem("objects", "assert f().n == 4", "class f: n = 4"),
        problem("beside", "import inspect\nassert inspect.isfunction(f)"),
        problem("broken", "assert f(2) == 5"),
        problem("without", "assert f(2) == 4", ""),
    ]
    rulings = rule(problems, pool, Limits(3, 256), verdicts.append)
    found = {name: (ruling.mode, ruling.may_use_objects, bool(ruling.fault)) for name, ruling in rulings.items()}
    assert found == {
        "plain": ("outside", False, False),
        "objects": ("outside", True, False),
        "beside": ("inside", True, False),
        "broken": ("outside", True, True),
        "without": ("outside", True, False),
    }
    assert rulings["beside"].reason == "its reference does not pass outside (wrong)"
    assert rulings["broken"].fault == "its own reference does not pass: wrong"
    assert sorted(verdicts) == ["passed", "passed", "wrong", "wrong"]


def test_a_slow_reference_gives_its_problem_more_time(pool):
    slow = "import time\ndef f(x):\n    time.sleep(0.6)\n    return x"
    rulings = rule([problem("slow", "assert f(1) == 1", slow)], pool, Limits(0.3, 256), lambda _: None)
    assert (rulings["slow"].mode, rulings["slow"].time_factor, rulings["slow"].fault) == ("outside", 6, "")


def test_a_reference_that_takes_much_of_its_time_gives_its_problem_more(pool):
    slow = "import time\ndef f(x):\n    time.sleep(0.6)\n    return x"
    rulings = rule([problem("slow", "assert f(1) == 1", slow)], pool, Limits(2, 256), lambda _: None)
    assert (rulings["slow"].mode, rulings["slow"].time_factor) == ("outside", 6)


def test_a_reference_that_never_ends_is_broken(pool):
    endless = "def f(x):\n    while True: pass"
    rulings = rule([problem("endless", "assert f(1) == 1", endless)], pool, Limits(0.1, 256), lambda _: None)
    assert rulings["endless"].fault == "its own reference does not pass: timeout"
