"""Where the sandbox is not whole: a layer that does not hold, no namespaces at all, no sandbox asked for, no root."""

import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest
from click.testing import CliRunner

from mft_eval.cli import main
from mft_eval.sandbox import bubblewrap
from mft_eval.sandbox.file_rules import landlock_version

RECORD = {"problem_id": "p", "prompt": "Write f.", "entry_point": "f", "test": "assert f(2) == 4\n"}
REFERENCE = {"reference": "def f(x):\n    return x + x\n"}
ANSWER = json.dumps({"problem_id": "p", "sample_index": 0, "completion": "def f(x): return 2 * x"}) + "\n"
LAYER = "files"


@pytest.fixture
def problems(tmp_path):
    path = tmp_path / "problems.jsonl"
    path.write_text(json.dumps(RECORD | REFERENCE) + "\n")
    return path


@pytest.fixture
def score(problems, monkeypatch):
    """Scores where the sandbox shows the settings of the system too."""
    mounts = bubblewrap._mounts()

    def run(*options):
        monkeypatch.setattr(bubblewrap, "_mounts", lambda: mounts | {"/etc": "/etc"})
        return CliRunner().invoke(main, ["score", str(problems), "-", *options], input=ANSWER)

    return run


def test_strict_refuses_by_the_layers_name(score):
    result = score()
    assert (result.exit_code, result.stderr.count("\n"), result.stdout) == (1, 1, "")
    assert f"does not hold on this machine: {LAYER} missing" in result.stderr


def test_best_effort_goes_on_and_says_so(score):
    result = score("--isolation", "best-effort")
    results = json.loads(result.stdout)
    assert (results["settings"]["isolation"], results["settings"]["missing_layers"]) == ("best-effort", [LAYER])
    assert results["settings"]["walls"] == "namespaces"
    assert results["pass_at_k"] == {"pass@1": 1.0}
    assert f"best-effort isolation by namespaces, without: {LAYER}" in result.stderr


def test_without_a_sandbox_is_marked_everywhere(problems, tmp_path):
    out = tmp_path / "out.json"
    arguments = ["score", str(problems), "-", str(out), "--isolation", "none"]
    result = CliRunner().invoke(main, arguments, input=ANSWER)
    results = json.loads(out.read_text())
    assert (results["settings"]["isolation"], results["settings"]["walls"]) == ("none", "none")
    assert {"network", "files", "processes"} <= set(results["settings"]["missing_layers"])
    (sample,) = results["problems"][0]["samples"]
    assert (sample["verdict"], sample["untrusted"]) == ("passed", "no sandbox was around the program")
    assert result.stderr.startswith("WARNING: NO SANDBOX")
    assert CliRunner().invoke(main, ["show", str(out)]).stdout.startswith("WARNING: NO SANDBOX")


# Program -> its verdict where Landlock and a filter of system calls are all that there is.
BEHIND_LANDLOCK = {
    "def f(x): return 2 * x": "passed",
    "import threading\ndef f(x):\n    threading.Thread(target=print).start()\n    return 4": "passed",
    "def f(x):\n    open('mine', 'w').write('4')\n    return int(open('mine').read())": "passed",
    "import os\ndef f(x):\n    os.mkdir('b', 0)\n    os.symlink('/tmp', 'c')\n    return 4": "passed",
    "def f(x): return open('/etc/passwd').read()": "exception",
    "def f(x): return open('PROBLEMS').read()": "exception",
    "import os\ndef f(x): return os.listdir('/tmp')": "exception",
    "def f(x): return open('/tmp/mft-eval-escaped', 'w')": "exception",
    "import os\ndef f(x): os.chmod('PROBLEMS', 0)": "exception",
    "import os\ndef f(x): os.truncate('PROBLEMS', 0)": "exception",
    "import os\ndef f(x): os.utime('PROBLEMS', (0, 0))": "exception",
    "import os\ndef f(x): os.fchmod(os.open(os.__file__, os.O_RDONLY), 0o644)": "exception",
    "import os\ndef f(x): os.setxattr(os.open(os.__file__, os.O_RDONLY), 'user.left', b'')": "exception",
    # setxattrat, removexattrat and file_setattr: by the path of a file that it may not open.
    **{
        f"import ctypes\ndef f(x):\n    if ctypes.CDLL(None).syscall({arguments}) < 0: raise OSError": "exception"
        for arguments in (
            "463, -100, b'PROBLEMS', 0, b'user.left', (ctypes.c_uint64 * 2)(), 16",
            "466, -100, b'PROBLEMS', 0, b'user.left'",
            "469, -100, b'PROBLEMS', (ctypes.c_uint64 * 3)(), 24, 0",
        )
    },
    "import os\ndef f(x): os.kill(os.getppid(), 9)": "exception",
    # It reaches nobody, and the kernel says nothing.
    "import os\ndef f(x): os.kill(-1, 9)": "wrong",
    "import socket\ndef f(x): socket.create_connection(('127.0.0.1', 22), 1)": "exception",
    "import socket\ndef f(x): socket.socket(socket.AF_UNIX)": "exception",
    "import os\ndef f(x): os.fork()": "exception",
    "import subprocess\ndef f(x): subprocess.run(['/bin/true'])": "exception",
    "import ctypes\ndef f(x):\n    if ctypes.CDLL(None).ptrace(16, 1, 0, 0): raise OSError": "exception",
    "import ctypes\ndef f(x):\n    if ctypes.CDLL(None).shmget(1, 4096, 0o1600) < 0: raise OSError": "exception",
    "import resource, os\ndef f(x): resource.prlimit(os.getppid(), resource.RLIMIT_CPU, (1, 1))": "exception",
    "def f(x): return len(bytearray(2**34))": "out-of-memory",
    "def f(x):\n    while True: pass": "timeout",
    "import os\ndef f(x): os._exit(0)": "killed",
}
SUM = "a, b = map(int, input().split())\nprint(a + b)\n"
CPP = "#include <iostream>\nint main() { int a, b; std::cin >> a >> b; std::cout << a + b; }\n"


def folders():
    return set(Path(tempfile.gettempdir()).glob("mft-eval-*"))


@pytest.mark.slow
def test_without_namespaces_best_effort_goes_by_landlock(problems, tmp_path, no_namespaces):
    """The real thing: all of it runs where no user namespace can be made."""
    if not landlock_version():
        pytest.skip("this kernel has no Landlock")
    case = {"problem_id": "sum", "prompt": "Add.", "cases": [{"input": "1 2", "output": "3"}]}
    records = [RECORD | REFERENCE, case | {"reference": SUM}]
    records.append(case | {"problem_id": "sum in C++", "language": "cpp", "reference": CPP})
    problems.write_text("".join(json.dumps(record) + "\n" for record in records))
    programs = [("p", program.replace("PROBLEMS", str(problems))) for program in BEHIND_LANDLOCK]
    programs += [("sum", SUM), ("sum", "print(open('/etc/passwd').read())"), ("sum in C++", CPP)]
    generations = tmp_path / "generations.jsonl"
    lines = [{"task_id": name, "solution": program} for name, program in programs]
    generations.write_text("".join(json.dumps(line) + "\n" for line in lines))
    stored = problems.read_bytes(), problems.stat()
    before = folders()
    command = [*no_namespaces, Path(sys.executable).parent / "mft-eval", "score", problems, generations, "-"]
    refused = subprocess.run(command, capture_output=True, text=True)
    assert (refused.returncode, refused.stderr.count("\n"), refused.stdout) == (1, 1, "")
    command += ["--isolation", "best-effort", "--timeout", "3"]
    results = json.loads(subprocess.run(command, capture_output=True, check=True).stdout)
    assert (results["settings"]["walls"], results["settings"]["missing_layers"]) == (
        "landlock",
        ["processes", "disk limit"],
    )
    found = [[sample["verdict"] for sample in problem["samples"]] for problem in results["problems"]]
    assert dict(zip(BEHIND_LANDLOCK, found[0], strict=True)) == BEHIND_LANDLOCK
    assert found[1:] == [["passed", "exception"], ["passed"]]
    assert (problems.read_bytes(), problems.stat().st_mtime_ns) == (stored[0], stored[1].st_mtime_ns)
    assert problems.stat().st_mode == stored[1].st_mode
    left, deadline = folders() - before, time.monotonic() + 10
    # Those of another run on this machine go by themselves.
    while left & folders() and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not left & folders()


def test_strict_holds_as_an_ordinary_user(problems, ordinary_user):
    command = [*ordinary_user, Path(sys.executable).parent / "mft-eval", "score", problems, "-"]
    done = subprocess.run(command, input=ANSWER, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    settings = json.loads(done.stdout)["settings"]
    assert (settings["isolation"], settings["missing_layers"]) == ("strict", [])


def test_a_folder_that_may_not_be_written_to_is_one_clear_error(problems, tmp_path, ordinary_user):
    if not ordinary_user:
        pytest.skip("a folder of root's is closed to others, and nobody is root here")
    command = [*ordinary_user, Path(sys.executable).parent / "mft-eval", "score", problems, "-", "--timings"]
    done = subprocess.run([*command, tmp_path / "t.jsonl"], input=ANSWER, capture_output=True, text=True)
    assert (done.returncode, done.stderr.count("\n")) == (1, 1), done.stderr
    assert "cannot write" in done.stderr
