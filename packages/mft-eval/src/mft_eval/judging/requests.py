"""What a server of judgements is asked, and what its answer means."""

import os
import sys
from typing import Any

from mft_eval.judging.judgement import INSIDE, OUTSIDE, Judgement, Limits, Ruling
from mft_eval.judging.languages import LANGUAGES, toolchain_path
from mft_eval.problems.problem import CompiledTest, Problem, PythonTest
from mft_eval.sandbox.bubblewrap import PACKAGE_DIR
from mft_eval.sandbox.walls import NAMESPACES, NONE
from mft_eval.wire.exceptions import printable

_PROBE = Ruling(OUTSIDE, may_use_objects=True)
_NO_SANDBOX = "no sandbox was around the program"
_COMPILED_IN = "the tests are a part of the program"


def make_request(
    problem: Problem, program: str, ruling: Ruling, limits: Limits, *, is_captured: bool = False
) -> dict[str, Any]:
    """The request to judge `program`, as JSON holds it; with `is_captured` the answer has more to show a person."""
    timeout_seconds = (problem.timeout_seconds or limits.timeout_seconds) * ruling.time_factor
    language = LANGUAGES[problem.language]
    request: dict[str, Any] = {
        "timeout_seconds": timeout_seconds,
        "limits": {
            "memory_bytes": limits.memory_mb * 2**20,
            "memory_limit": language.memory_limit,
            "cpu_seconds": int(timeout_seconds) + 2,
            "num_processes": language.num_processes,
            "is_captured": is_captured,
        },
    }
    if isinstance(problem.test, PythonTest):
        return request | {
            "kind": "python",
            "mode": ruling.mode,
            "may_use_objects": ruling.may_use_objects,
            "program": program,
            "preamble": problem.test.preamble,
            "entry_point": problem.test.entry_point,
            "names": problem.test.names,
            "test": problem.test.script,
        }
    # The host itself is Python and small; what it starts has limits of its own.
    request["limits"]["cpu_seconds"] = 3600
    is_beside = isinstance(problem.test, CompiledTest)
    suffix, more, cases = "", {}, ()
    if isinstance(problem.test, CompiledTest):
        suffix, more = problem.test.suffix, dict(problem.test.files)
    else:
        cases = problem.test.cases
    python = os.path.realpath(getattr(sys, "_base_executable", sys.executable))
    command = toolchain_path(language) or language.command
    places = {"python": python, "package": PACKAGE_DIR, "command": command, "folder": os.path.dirname(command)}  # noqa: PTH120
    return request | {
        "kind": "script",
        "files": {**language.files, **more, language.file_name: program + suffix},
        "build": [word.format(**places) for word in language.build],
        "run": [word.format(**places) for word in language.run],
        "is_beside": is_beside,
        "cases": cases,
    }


def read_outcome(outcome: dict[str, Any], problem: Problem, ruling: Ruling, walls: str = NAMESPACES) -> Judgement:
    """The judgement in the answer of a server whose sandboxes are behind `walls`."""
    mode, untrusted = ruling.mode, outcome.get("programs_word", "")
    if isinstance(problem.test, CompiledTest):
        mode, untrusted = INSIDE, _COMPILED_IN
    elif ruling.mode == INSIDE:
        untrusted = f"the test runs beside the program: {ruling.reason}"
    if walls == NONE:
        untrusted = _NO_SANDBOX
    detail = outcome["detail"]
    if outcome["verdict"] == "harness-error" and outcome.get("output", "").strip():
        detail = f"{detail}: {outcome['output'].strip().splitlines()[-1][:200]}"
    # Both can hold names that the program made up.
    return Judgement(
        verdict=outcome["verdict"],
        detail=printable(detail),
        mode=mode,
        seconds=outcome.get("seconds", 0.0),
        untrusted=printable(untrusted),
        measures=outcome.get("measures", {}),
    )
