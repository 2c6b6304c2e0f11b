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
