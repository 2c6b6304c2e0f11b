"""Whole programs on stdin and stdout: right ones pass, hostile ones do not, and nothing of either is left."""

import time

import pytest

from mft_eval.judging.judgement import Limits
from mft_eval.judging.script_test import same_output
from mft_eval.problems.problem import InputOutputTest, Problem

CASES = InputOutputTest((("1 2\n", "3\n"), ("30 4\n", "34\n")))
SUM = "a, b = map(int, input().split())\nprint(a + b)\n"
LIMITS = Limits(2, 256)

RIGHT = {
    "plain": SUM,
    "all of stdin": "import sys\nprint(sum(map(int, sys.stdin.read().split())))",
    "bytes of stdin": "import sys\nsys.stdout.buffer.write(b'%d' % sum(map(int, sys.stdin.buffer.read().split())))",
    "a main guard": "def main():\n    print(sum(map(int, input().split())))\nif __name__ == '__main__':\n    main()\n",
    "space at the end": "print(sum(map(int, input().split())), '\\n\\n')",
    "another way to write a number": "print(float(sum(map(int, input().split()))))",
    "an exit of its own": f"import sys\n{SUM}sys.exit()\n",
    "an exit at once": f"import os, sys\n{SUM}sys.stdout.flush()\nos._exit(0)\n",
    "noise on stderr": f"import sys\n{SUM}print('noise', file=sys.stderr)\n",
    "a thread": "import threading\ndef run():\n    print(sum(map(int, input().split())))\n"
    "t = threading.Thread(target=run)\nt.start()\n",
    "a child": "import subprocess, sys\n"
    "subprocess.run([sys.executable, '-c', 'print(sum(map(int, input().split())))'])",
}


@pytest.mark.parametrize("name", RIGHT)
def test_a_right_program_passes_with(judge_problem, name):
    judgement = judge_problem(Problem("p", (), "", CASES, SUM), RIGHT[name], LIMITS)
    assert (judgement.verdict, judgement.mode, judgement.untrusted) == ("passed", "outside", ""), judgement


HOSTILE = {
    "prints nothing": ("", "wrong"),
    "prints one answer for all": ("print(3)", "wrong"),
    "prints every answer": ("for n in range(99): print(n)", "wrong"),
    "prints an answer twice": (f"{SUM}print(a + b)", "wrong"),
    "prints a verdict": ("print('passed')", "wrong"),
    "answers on stderr": (SUM.replace("b)\n", "b, file=__import__('sys').stderr)"), "wrong"),
    "fails after the answer": (f"{SUM}1 / 0", "exception"),
    "leaves with a status": (f"{SUM}raise SystemExit(3)", "exception"),
    "leaves before the answer": ("import os\nos._exit(0)", "wrong"),
    "is killed": ("import os, signal\nos.kill(os.getpid(), signal.SIGKILL)", "killed"),
    "crashes": ("import ctypes\nctypes.string_at(0)", "killed"),
    "never ends": ("while True: pass", "timeout"),
    "never ends after the answer": (f"{SUM}import sys\nsys.stdout.flush()\nwhile True: pass", "timeout"),
    "sleeps": ("import time\ntime.sleep(99)", "timeout"),
    "waits for more input": ("import time\nwhile True: input() if 0 else time.sleep(1)", "timeout"),
    "floods stdout": ("while True: print('x' * 10**6)", "refused"),
    "prints more than may cross": ("import sys\nsys.stdout.write('1' * 2**25)", "refused"),
    "prints nan": ("print('nan')", "wrong"),
    "prints no text": ("import sys\nsys.stdout.buffer.write(bytes(range(256)))", "wrong"),
    "eats memory": ("bytearray(2**32)", "exception"),
    "fills the disk": ("for n in range(99): open(f'/tmp/{n}', 'wb').write(bytes(2**25))", "exception"),
    "is a fork bomb": ("import os\nwhile True: os.fork()", "exception"),
    "kills what runs it": ("import os, signal\nos.kill(os.getppid(), signal.SIGKILL)", "killed"),
    "kills everything": ("import os, signal\nos.kill(-1, signal.SIGKILL)", "killed"),
    "stops what runs it": ("import os, signal\nos.kill(os.getppid(), signal.SIGSTOP)", "timeout"),
    "writes to every descriptor": (
        "import os\nfor n in range(3, 256):\n    try: os.write(n, b'\\xff' * 64)\n    except OSError: pass",
        "wrong",
    ),
    "uses the network": ("import socket\nsocket.create_connection(('1.1.1.1', 53), 1)", "exception"),
    "reads the password file": ("print(open('/etc/passwd').read())", "exception"),
    "keeps the first input": (
        "import os\nif os.path.exists('/tmp/x'): print(open('/tmp/x').read())\n"
        "else:\n    open('/tmp/x', 'w').write('3')\n    print(3)",
        "wrong",
    ),
    "rewrites itself": ("open('main.py', 'w').write('print(3)')\nprint(3)", "wrong"),
    "leaves a child that answers": (
        "import os, time\nif os.fork() == 0:\n    time.sleep(0.3)\n    print(3)\n    print(34)",
        "wrong",
    ),
    "is not Python": ("def f(:", "exception"),
    "needs a package": ("import numpy", "exception"),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_the_judge_is_not_fooled_by_a_program_that(judge_problem, name):
    program, verdict = HOSTILE[name]
    start = time.monotonic()
    judgement = judge_problem(Problem("p", (), "", CASES, SUM), program, LIMITS)
    assert judgement.verdict == verdict, judgement
    assert time.monotonic() - start < 2 * LIMITS.timeout_seconds + 15


def test_the_case_that_fails_is_named(judge_problem):
    judgement = judge_problem(Problem("p", (), "", CASES, SUM), "print(3)", LIMITS)
    assert (judgement.verdict, judgement.detail) == ("wrong", "case 2")


def test_each_case_has_its_own_deadline(judge_problem):
    cases = InputOutputTest((("1 2\n", "3\n"),) * 4)
    slow = f"import time\ntime.sleep(0.6)\n{SUM}"
    assert judge_problem(Problem("p", (), "", cases, SUM), slow, LIMITS).verdict == "passed"


def test_the_seconds_of_a_timeout_are_those_that_it_took(judge_problem):
    hangs_later = "import time\na, b = map(int, input().split())\ntime.sleep(0.5 if a == 1 else 99)\nprint(a + b)\n"
    judgement = judge_problem(Problem("p", (), "", CASES, SUM), hangs_later, Limits(1, 256))
    assert judgement.verdict == "timeout"
    assert judgement.seconds >= 1.5


@pytest.mark.parametrize(
    ("printed", "expected", "is_same"),
    [
        ("1\n2\n", "1\n2", True),
        ("1 \n 2", "1\n2\n\n", True),
        ("1.50", "1.5", True),
        ("1e1 x", "10 x", True),
        ("1\n\n2", "1\n2", False),
        ("1  2", "1 2", True),
        ("12", "1 2", False),
        ("nan", "NaN", False),
        ("abc", "ABC", False),
        ("", "\n", True),
    ],
)
def test_outputs_are_compared_by_line_and_number(printed, expected, is_same):
    assert same_output(printed, expected) is is_same
    assert same_output(expected, printed) is is_same
    assert same_output(printed, printed) is True


def test_no_expected_output_enters_the_sandbox(judge_problem):
    """The program looks through all of its memory and files for a word that only the answer holds."""
    cases = InputOutputTest((("1\n", "needle-9137\n"),))
    search = "import gc, os\ntexts = [str(o) for o in gc.get_objects()] + os.listdir('/tmp')\n"
    search += "texts += [open(p).read() for p in os.listdir('/tmp')]\n"
    search += "print(*{t for t in texts if 'needle' + chr(45) + '9137' in t})"
    assert judge_problem(Problem("p", (), "", cases, ""), search, LIMITS).verdict == "wrong"
