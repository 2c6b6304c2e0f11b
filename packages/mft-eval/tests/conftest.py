import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from mft_eval.generations.extraction import preamble_of
from mft_eval.judging.gate import rule
from mft_eval.judging.judgement import Judgement, Limits
from mft_eval.judging.pool import JudgePool
from mft_eval.judging.requests import make_request, read_outcome
from mft_eval.problems.problem import Problem, PythonTest
from mft_eval.sandbox.bubblewrap import find_bwrap

LIMITS = Limits(timeout_seconds=2, memory_mb=256)


@pytest.fixture(scope="session", autouse=True)
def _own_cache(tmp_path_factory):
    """No test reads or writes the rulings of the person who runs it."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="session")
def pool():
    """One server of judgements."""
    with JudgePool(find_bwrap(), 1) as judges:
        yield judges


@pytest.fixture(scope="session")
def judge_problem(pool):
    """Judges a program against a problem, as the problem's reference rules."""
    rulings = {}

    def run(problem: Problem, program: str, limits: Limits = LIMITS) -> Judgement:
        key = (problem.test, problem.reference)
        if key not in rulings:
            rulings[key] = rule([problem], pool, limits, lambda _: None)[problem.problem_id]
        ruling = rulings[key]
        assert not ruling.fault, ruling.fault
        ((_, outcome),) = pool.judge_all([("sample", make_request(problem, program, ruling, limits))])
        return read_outcome(outcome, problem, ruling)

    return run


@pytest.fixture(scope="session")
def judge(judge_problem):
    """Judges a program that should define `f` against a test; without a `reference` no gate rules how."""

    def run(program: str, test: str, *, reference: str = "", prompt: str = "") -> Judgement:
        check = PythonTest("f", test, preamble_of(prompt, "f"))
        return judge_problem(Problem("p", (), prompt, check, reference), program)

    return run


@pytest.fixture
def no_namespaces():
    """What to put before a command that is to run where no user namespace can be made."""
    prefix = [find_bwrap(), "--unshare-user", "--disable-userns", "--uid", "1000", "--gid", "1000"]
    prefix += ["--dev-bind", "/", "/", "--die-with-parent"]
    if subprocess.run([*prefix, "true"], capture_output=True).returncode:
        pytest.skip("bubblewrap cannot forbid user namespaces here")
    return prefix


@pytest.fixture
def ordinary_user(tmp_path):
    """What to put before a command that is to run as a user who is not root; nothing where nobody is root.

    Root's home is closed to others: it shows them the interpreter and this checkout, and nothing else.
    """
    if os.geteuid() != 0:
        return []
    if shutil.which("setpriv") is None:
        pytest.skip("no setpriv on this machine")
    prefix = [find_bwrap(), "--die-with-parent", "--cap-add", "ALL", "--dev-bind", "/", "/"]
    # Every run of pytest closes the folder above its own to others.
    closed = ("/root", str(tmp_path.parents[1]))
    for folder in closed:
        prefix += ["--perms", "0755", "--tmpfs", folder]
    shown = {sys.base_prefix, sys.prefix, str(Path(__file__).parents[3]), str(tmp_path)}
    rustup = Path(os.environ.get("RUSTUP_HOME") or Path.home() / ".rustup")
    if rustup.is_dir():
        shown.add(str(rustup))
        prefix += ["--setenv", "RUSTUP_HOME", str(rustup)]
    for folder in sorted(shown):
        # Folders above a mount point are made readable by their owner alone unless they are named.
        above = [str(parent) for parent in Path(folder).parents if any(map(parent.is_relative_to, closed))]
        prefix += [word for parent in reversed(above) for word in ("--perms", "0755", "--dir", parent)]
        prefix += ["--bind", folder, folder]
    tmp_path.chmod(0o755)
    cache = tmp_path / "cache-of-user"
    cache.mkdir(mode=0o777)
    cache.chmod(0o777)
    prefix += ["--setenv", "XDG_CACHE_HOME", str(cache), "--setenv", "HOME", str(cache)]
    return [*prefix, "setpriv", "--reuid", "12345", "--regid", "12345", "--clear-groups"]
