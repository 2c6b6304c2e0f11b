"""Tests that must run beside the program: what is still caught there, and that the rest is marked."""

import textwrap

import pytest

REFERENCE = "def f(x):\n    yield x * x\n"

ATTACKS = {
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


@pytest.mark.parametrize("name", ATTACKS)
def test_a_test_inside_is_not_passed_by_a_program_that(judge, name):
    source, verdict = ATTACKS[name]
    test = "import inspect\nassert inspect.isgeneratorfunction(f)\nassert next(f(2)) == 4\nassert sum(f(3)) == 9\n"
    judgement = judge(textwrap.dedent(source), test, reference=REFERENCE)
    assert judgement.verdict == verdict, judgement
    assert judgement.mode == "inside"


def test_a_pass_is_marked_untrusted_with_the_reason(judge):
    test = "import inspect\nassert inspect.isgeneratorfunction(f)\n"
    judgement = judge(REFERENCE, test, reference=REFERENCE)
    assert (judgement.verdict, judgement.mode) == ("passed", "inside")
    assert judgement.untrusted == "the test runs beside the program: its reference does not pass outside (wrong)"


def test_a_forged_pass_is_marked(judge):
    """It takes the word out of the pipe before the test does: this is what the mark warns of."""
    forger = """
        import os, sys
        def f(x):
            frame = sys._getframe()
            while "incoming" not in frame.f_locals: frame = frame.f_back
            places = frame.f_locals
            word = os.read(places["incoming"], 32)
            os.write(places["outgoing"], b"\\x20\\0\\0\\0" + word)
            os._exit(0)
            yield
    """
    test = "import inspect\nassert inspect.isgeneratorfunction(f)\nassert next(f(2)) == 4\n"
    judgement = judge(textwrap.dedent(forger), test, reference=REFERENCE)
    assert judgement.verdict != "passed" or judgement.untrusted
