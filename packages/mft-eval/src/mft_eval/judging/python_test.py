"""A Python test of one program: in this process over handles, or beside the program in the sandbox."""

from __future__ import annotations

import os

from mft_eval.judging.session import PROGRAM_ENDED, Session, VerdictReached
from mft_eval.sandbox.protocol import NONCE_BYTES
from mft_eval.wire.channel import read_frame, write_frame
from mft_eval.wire.codec import GarbageError, decode, encode

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any


class TestsFailedError(AssertionError):
    """Unit tests that a model wrote are wrong about the reference, or miss a mutant; `detail` says which."""

    def __init__(self, detail: str) -> None:
        super().__init__(detail)
        self.detail = detail


def run_python_test(session: Session, request: dict[str, Any]) -> tuple[str, str]:
    """The verdict on the request's program and its detail."""
    run = _test_beside if request["mode"] == "inside" else _test_outside
    try:
        found = session.load(request["program"], request["names"], request["limits"])
        if request["entry_point"] not in found:
            return "exception", "NameError"
        return run(session, request, found)
    except VerdictReached:
        return session.ending or ("harness-error", "ended without a verdict")


def _test_outside(session: Session, request: dict[str, Any], found: dict[str, Any]) -> tuple[str, str]:
    """Runs the test in this process; what the problem itself defines is not the program's to give."""
    namespace = session.test_globals
    namespace |= {"__name__": "test", "__measures__": session.measures}
    _run_trusted(session, lambda: exec(compile(request["preamble"], "<preamble>", "exec"), namespace))  # noqa: S102
    namespace |= {
        name: value for name, value in found.items() if name == request["entry_point"] or name not in namespace
    }
    code = _run_trusted(session, lambda: compile(request["test"], "<test>", "exec"))
    if "random" in request["test"]:
        import random

        random.seed(0)
    try:
        exec(code, namespace)  # noqa: S102
    except BaseException as error:
        session.failed_line = _failed_line(error)
        # An ending holds even where the test caught it and went on to fail by itself.
        return session.ending or _failure(session, error)
    if session.ending:
        return session.ending
    return ("passed", "") if session.num_asks else ("harness-error", "the test calls nothing of the program")


def _failed_line(error: BaseException) -> int:
    """The line of the test in which `error` arose, 0 where there is none."""
    line, frame = 0, error.__traceback__
    while frame is not None:
        if frame.tb_frame.f_code.co_filename == "<test>":
            line = frame.tb_lineno
        frame = frame.tb_next
    return line


def _run_trusted(session: Session, action: Callable[[], Any]) -> Any:
    try:
        return action()
    except Exception as error:
        raise session.ended("harness-error", f"{type(error).__name__} in the problem's own code: {error}") from None


def _failure(session: Session, error: BaseException) -> tuple[str, str]:
    """The verdict on a test that ended in `error`."""
    kind = type(error).__name__
    if error is session.last_error:
        return "out-of-memory" if isinstance(error, MemoryError) else "exception", session.last_error_name
    if isinstance(error, AssertionError):
        return "wrong", error.detail if isinstance(error, TestsFailedError) else ""
    if isinstance(error, MemoryError):
        return "out-of-memory", "in the test"
    if isinstance(error, (NameError, ImportError)) or not isinstance(error, Exception):
        return "harness-error", f"{kind} in the test: {error}"
    return "wrong", f"{kind} in the test"


def _test_beside(session: Session, request: dict[str, Any], _: dict[str, Any]) -> tuple[str, str]:
    """Has the test run beside the program; only the nonce, which the program's host reads last, is a pass."""
    nonce = os.urandom(NONCE_BYTES)
    message = ("test", 1, request["preamble"], request["entry_point"], tuple(request["names"]), request["test"])
    try:
        write_frame(session.outgoing, encode(message, [], is_exact=True)[0])
        os.write(session.outgoing, nonce)
        answer = read_frame(session.incoming)
    except GarbageError as error:
        raise session.refused(str(error)) from None
    except (EOFError, BrokenPipeError):
        raise session.ended(PROGRAM_ENDED, "") from None
    if answer == nonce:
        return "passed", ""
    try:
        told = decode(answer, [])[0]
    except GarbageError as error:
        raise session.refused(str(error)) from None
    match told:
        case ("failed", 1, (str(kind), *_), bool(is_from_test)):
            if is_from_test and kind == "AssertionError":
                return "wrong", ""
            return "out-of-memory" if kind == "MemoryError" else "exception", kind[:80]
        case _:
            return "refused", "wrote to the judge's pipe: not an answer"
