"""Whether programs can be judged on this machine."""

from mft_eval.errors import EvalError
from mft_eval.judging.judgement import OUTSIDE, Limits, Ruling
from mft_eval.judging.pool import JudgePool
from mft_eval.judging.requests import make_request
from mft_eval.problems.problem import Problem, PythonTest

_ANSWER = "def answer():\n    return 42\n"
_PROBE = Problem("check", (), "", PythonTest("answer", "assert answer() == 42\n"), _ANSWER)
_PROBE_LIMITS = Limits(10.0, 1024)


def check_sandbox(pool: JudgePool) -> None:
    """Raises unless a program can be judged on this machine."""
    request = make_request(_PROBE, _ANSWER, Ruling(OUTSIDE, may_use_objects=False), _PROBE_LIMITS)
    ((_, outcome),) = pool.judge_all([("check", request)], num_workers=1)
    if outcome["verdict"] != "passed":
        fix = "allow unprivileged user namespaces (sysctl kernel.unprivileged_userns_clone, user.max_user_namespaces, "
        fix += "kernel.apparmor_restrict_unprivileged_userns), or CAP_SYS_ADMIN in a container"
        reason = (outcome.get("output", "").strip().splitlines() or [outcome["detail"] or outcome["verdict"]])[-1]
        raise EvalError(f"programs cannot be judged on this machine: {reason}", fix=fix)
