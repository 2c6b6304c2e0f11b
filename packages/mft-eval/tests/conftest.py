import pytest

from mft_eval.judging.program_judge import Judgement, Limits, ProgramJudge, find_bwrap
from mft_eval.problems.reading import Problem


@pytest.fixture(scope="session")
def judge():
    """Judges a program that should define `f` against a test; `reference` decides what may run inside."""
    program_judge = ProgramJudge(find_bwrap(), Limits(timeout_seconds=3, memory_mb=256))

    def run(program: str, test: str, *, reference: str = "def f(*a): return None\n", prompt: str = "") -> Judgement:
        problem = Problem(f"{reference}{test}", (), prompt, "f", test, reference)
        return program_judge.judge(problem, program)

    return run
