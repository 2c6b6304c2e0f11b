"""Judging unit tests that a model wrote: they see a function through its calls alone, and not which one it is."""

from __future__ import annotations

import random

from mft_eval.judging.branches import Branches
from mft_eval.judging.python_test import TestsFailedError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

_NUM_REFERENCES = 12


def check_tests(
    run: Any,
    names: dict[str, Any],
    *,
    entry_point: str,
    reference: str,
    mutants: list[str],
    measures: dict[str, float],
) -> None:
    """Raises unless the tests pass on every showing of the reference and fail on each of the mutants.

    Where they pass on the reference, `measures` gets the shares of its branches that they take and of the mutants that
    they find, from 0 to 1: `branch_coverage` and `mutants_killed`. `run` runs the tests over a function; `names` is the
    namespace that the implementations are made in. They are shown in an order that no program can know, so that tests
    that fail by themselves fail on the reference too.
    """
    right = Branches(reference)
    shown = [(right, False)] * _NUM_REFERENCES + [(Branches(mutant), True) for mutant in mutants]
    random.SystemRandom().shuffle(shown)
    num_killed = 0
    for program, is_mutant in shown:
        program.run(names)
        try:
            run(entry_point, names[entry_point])
        except Exception:
            if not is_mutant:
                raise TestsFailedError("fails on the reference") from None
            num_killed += 1
    measures |= {"branch_coverage": right.coverage(), "mutants_killed": num_killed / len(mutants)}
    if num_killed < len(mutants):
        raise TestsFailedError(f"{num_killed} of {len(mutants)} mutants killed")
