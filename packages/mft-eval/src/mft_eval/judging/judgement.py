"""What is found about one program, and the limits under which."""

from dataclasses import dataclass, field

VERDICTS = ("passed", "wrong", "exception", "timeout", "out-of-memory", "killed", "refused", "harness-error")
OUTSIDE, INSIDE = "outside", "inside"


@dataclass(frozen=True, slots=True)
class Limits:
    """What one program may use: wall-clock seconds and MiB of memory per process."""

    timeout_seconds: float
    memory_mb: int


@dataclass(frozen=True, slots=True)
class Judgement:
    """A verdict (of `VERDICTS`), a short reason, the mode that judged and the program's seconds.

    `untrusted` says what a program written against this tool could have forged, empty where nothing. `measures` are
    what the test found beside the verdict; `base_verdict` is that of the problem's base test, empty where it has none.
    """

    verdict: str
    detail: str
    mode: str
    seconds: float
    untrusted: str = ""
    measures: dict[str, float] = field(default_factory=dict)
    base_verdict: str = ""


@dataclass(frozen=True, slots=True)
class Ruling:
    """How the programs of one problem are judged, as its reference solution decides.

    `reason` says why `mode` is inside; `fault`, where not empty, why the problem cannot be judged at all.
    `time_factor` multiplies the time limit where the reference itself needs more than that.
    """

    mode: str
    may_use_objects: bool
    reason: str = ""
    time_factor: int = 1
    fault: str = ""
