"""The reference gate: how a problem's programs are judged is decided by its reference solution, before any counts."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from typing import Any

from mft_eval.judging.judgement import INSIDE, OUTSIDE, Limits, Ruling
from mft_eval.judging.pool import JudgePool
from mft_eval.judging.requests import make_request
from mft_eval.problems.problem import Problem, PythonTest

_OUTSIDE = Ruling(OUTSIDE, may_use_objects=True)
_PATIENT = Ruling(OUTSIDE, may_use_objects=True, time_factor=6)
# A reference that takes more of the limit than this leaves other right programs too little of it.
_SLOW_SHARE = 0.25
_INSIDE = Ruling(INSIDE, may_use_objects=True)


def rule(
    problems: Sequence[Problem], pool: JudgePool, limits: Limits, progressed: Callable[[str], None]
) -> dict[str, Ruling]:
    """The ruling on each problem by its id; `progressed` is called with each verdict on a reference.

    A reference that passes outside is judged so for everyone, and shows whether programs may give objects of their
    own and whether they need more time. One that passes only beside its test is judged so for everyone. A problem
    without a reference is judged outside, objects allowed.
    """
    rulings = {problem.problem_id: _OUTSIDE for problem in problems if not problem.reference}
    left = {problem.problem_id: problem for problem in problems if problem.reference}
    outcomes: dict[str, dict[str, Any]] = {}
    for ruling, choose in ((_OUTSIDE, _every), (_OUTSIDE, _late), (_PATIENT, _late), (_INSIDE, _may_be_beside)):
        chosen = [problem for problem in left.values() if choose(problem, outcomes.get(problem.problem_id))]
        for problem, outcome in _judge_references(chosen, ruling, pool, limits, is_alone=choose is _late):
            if ruling is not _INSIDE:
                outcomes[problem.problem_id] = outcome
            if ruling is _OUTSIDE and choose is _every:
                progressed(outcome["verdict"])
            if outcome["verdict"] == "passed":
                is_slow = outcome["seconds"] > _SLOW_SHARE * (problem.timeout_seconds or limits.timeout_seconds)
                followed = replace(ruling, time_factor=_PATIENT.time_factor) if is_slow else ruling
                rulings[problem.problem_id] = _follow(followed, outcome, outcomes[problem.problem_id])
                del left[problem.problem_id]
    for problem_id in left:
        fault = f"its own reference does not pass: {_told(outcomes[problem_id])}"
        rulings[problem_id] = replace(_OUTSIDE, fault=fault)
    return rulings


def _every(*_: Any) -> bool:
    return True


def _late(_: Problem, outcome: dict[str, Any] | None) -> bool:
    return outcome is not None and outcome["verdict"] == "timeout"


def _may_be_beside(problem: Problem, outcome: dict[str, Any] | None) -> bool:
    return isinstance(problem.test, PythonTest) and not _late(problem, outcome)


def _follow(ruling: Ruling, outcome: dict[str, Any], outcome_outside: dict[str, Any]) -> Ruling:
    """The ruling for everyone where the reference has passed under `ruling`."""
    if ruling.mode == INSIDE:
        return replace(ruling, reason=f"its reference does not pass outside ({_told(outcome_outside)})")
    return replace(ruling, may_use_objects=outcome.get("uses_objects", False))


def _judge_references(
    problems: Iterable[Problem], ruling: Ruling, pool: JudgePool, limits: Limits, *, is_alone: bool
) -> Iterator[tuple[Problem, dict[str, Any]]]:
    requests = [(problem, make_request(problem, problem.reference, ruling, limits)) for problem in problems]
    return pool.judge_all(requests, num_workers=1 if is_alone else None)


def _told(outcome: dict[str, Any]) -> str:
    return ": ".join(part for part in (outcome["verdict"], outcome["detail"]) if part)
