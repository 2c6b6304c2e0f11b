"""Servers of judgements: what breaks one breaks no neighbour, and nothing of theirs is left."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from mft_eval.judging.judgement import Limits, Ruling
from mft_eval.judging.pool import JudgePool
from mft_eval.judging.requests import make_request
from mft_eval.problems.problem import Problem, PythonTest
from mft_eval.sandbox.bubblewrap import find_bwrap

SQUARE = "def f(x): return x * x"
OUTSIDE = Ruling("outside", may_use_objects=False)


def request(program, test="assert f(2) == 4", seconds=1.0):
    problem = Problem("p", (), "", PythonTest("f", test), "")
    return make_request(problem, program, OUTSIDE, Limits(seconds, 256))


@pytest.mark.parametrize(
    ("test", "verdict"),
    [
        ("f(1)\nwhile True: pass\n", "timeout"),
        ("f(1)\n(9 ** 9 ** 9) ** 9\n", "timeout"),
        ("import ctypes\nctypes.string_at(0)\n", "harness-error"),
        ("import os\nos._exit(0)\n", "harness-error"),
        ("import no_such_module", "harness-error"),
        ("x = 1\n", "harness-error"),
        ("raise SystemExit", "harness-error"),
        ("def check():\n    del y\n    y = f(1)\ncheck()", "harness-error"),
    ],
)
def test_a_faulty_test_cannot_hang_or_end_the_scorer(pool, test, verdict):
    ((_, outcome),) = pool.judge_all([("a", request(SQUARE, test))])
    assert outcome["verdict"] == verdict
    ((_, outcome),) = pool.judge_all([("b", request(SQUARE))])
    assert outcome["verdict"] == "passed"


def test_many_requests_come_back_once_each():
    programs = {number: SQUARE if number % 3 else "def f(x): return x" for number in range(12)}
    with JudgePool(find_bwrap(), 2) as pool:
        found = list(pool.judge_all((number, request(program)) for number, program in programs.items()))
    assert sorted(number for number, _ in found) == list(range(12))
    assert {number for number, outcome in found if outcome["verdict"] == "passed"} == {n for n in range(12) if n % 3}


def test_hostile_neighbours_change_no_verdict():
    hostile = [
        "import os\nwhile True: os.fork()",
        "big = [0]\nwhile True: big += big",
        "import os\ndef f(x): os.kill(-1, 9)",
        "def f(x):\n    while True: pass",
        "import os\ndef f(x):\n    for n in range(99): open(f'/tmp/{n}', 'wb').write(bytes(2**25))",
        "import socket\ns = socket.socket(socket.AF_UNIX)\ns.bind('\\0taken')\ndef f(x): return 1",
        "import os\ndef f(x):\n    for n in range(3, 99):\n        try: os.write(n, b'x' * 99)\n"
        "        except OSError: pass",
    ]
    programs = [program for pair in zip(hostile, [SQUARE] * len(hostile), strict=True) for program in pair]
    with JudgePool(find_bwrap(), 3) as pool:
        found = dict(pool.judge_all((number, request(program, seconds=5)) for number, program in enumerate(programs)))
    assert [number for number, outcome in sorted(found.items()) if outcome["verdict"] == "passed"] == list(
        range(1, 14, 2)
    )


def test_a_server_that_dies_costs_one_sample():
    with JudgePool(find_bwrap(), 1) as pool:
        found = []
        for number, outcome in pool.judge_all((number, request(SQUARE)) for number in range(3)):
            found.append((number, outcome["verdict"]))
            if number == 0:
                pool._workers[0].process.kill()
    assert found == [(0, "passed"), (1, "harness-error"), (2, "passed")]


def descendants(pid):
    """Every process below `pid`, by /proc."""
    parents = {}
    for folder in Path("/proc").iterdir():
        if folder.name.isdecimal():
            try:
                fields = (folder / "stat").read_text().rpartition(")")[2].split()
            except OSError:
                continue
            if fields[0] != "Z":
                parents[int(folder.name)] = int(fields[1])
    found, frontier = set(), {pid}
    while frontier:
        frontier = {child for child, parent in parents.items() if parent in frontier}
        found |= frontier
    return found


def is_alive(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


SCORER = """
import sys
sys.path[:0] = sys.argv[1:]
from mft_eval.judging.judgement import Limits, Ruling
from mft_eval.judging.pool import JudgePool
from mft_eval.judging.requests import make_request
from mft_eval.problems.problem import Problem, PythonTest
from mft_eval.sandbox.bubblewrap import find_bwrap
problem = Problem("p", (), "", PythonTest("f", "f(1)"), "")
program = "import os, time\\nif os.fork() == 0: time.sleep(99)\\ndef f(x):\\n    os.fork()\\n    time.sleep(99)"
request = make_request(problem, program, Ruling("outside", False), Limits(60, 256))
with JudgePool(find_bwrap(), 1) as pool:
    print("started", flush=True)
    list(pool.judge_all([("a", request)]))
"""


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT, signal.SIGTERM])
def test_a_scorer_that_is_killed_leaves_no_process(number):
    scorer = subprocess.Popen([sys.executable, "-c", SCORER], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
    try:
        assert scorer.stdout.readline() == b"started\n"
        deadline = time.monotonic() + 20
        while len(descendants(scorer.pid)) < 6 and time.monotonic() < deadline:
            time.sleep(0.05)
        left = descendants(scorer.pid)
        assert len(left) >= 4
        os.kill(scorer.pid, number)
        scorer.wait()
        deadline = time.monotonic() + 20
        while any(map(is_alive, left)) and time.monotonic() < deadline:
            time.sleep(0.05)
        assert not [pid for pid in left if is_alive(pid)]
    finally:
        scorer.kill()
        scorer.wait()
