"""The trusted judge of one program: a process of its own that holds the test; standard library only.

It reads one request as JSON from stdin and writes to stdout a line `started` when the program's time begins, then its
verdict as a line of JSON. The kernel's alarm ends it at the deadline whatever it is doing, and the sandbox dies with
it.
"""

import hmac
import json
import os
import resource
import secrets
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

from mft_eval.judging.session import Proxy, Session, VerdictReached, process_ending
from mft_eval.sandbox.bubblewrap import sandbox_command
from mft_eval.sandbox.program_host import NONCE_BYTES, READY
from mft_eval.wire.channel import read_frame, write_frame
from mft_eval.wire.codec import GarbageError, decode, encode

STARTED = "started"
START_SECONDS = 30
_MEMORY_BYTES = 4 * 2**30


def main() -> None:
    """Judges the one request on stdin."""
    request = json.load(sys.stdin)
    answer_to = os.fdopen(os.dup(1), "w", encoding="utf-8")
    null = os.open(os.devnull, os.O_RDWR)
    for standard in (0, 1):
        os.dup2(null, standard)
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    signal.setitimer(signal.ITIMER_REAL, START_SECONDS)
    timeout_seconds = request["timeout_seconds"]
    command = sandbox_command(request["bwrap_path"], request["memory_bytes"], int(timeout_seconds) + 2)
    pipe = subprocess.PIPE
    process = subprocess.Popen(command, bufsize=0, stdin=pipe, stdout=pipe, stderr=pipe)
    try:
        if not _is_ready(process):
            noise = process.stderr.read(2000).decode("utf-8", "replace").strip()
            verdict, detail, seconds = "harness-error", f"the sandbox did not start: {noise}", 0.0
        else:
            print(STARTED, file=answer_to, flush=True)
            resource.setrlimit(resource.RLIMIT_AS, (_MEMORY_BYTES, _MEMORY_BYTES))
            signal.setitimer(signal.ITIMER_REAL, timeout_seconds)
            start = time.perf_counter()
            verdict, detail = _judge(Session(process), request)
            seconds = time.perf_counter() - start
            signal.setitimer(signal.ITIMER_REAL, 0)
        print(json.dumps({"verdict": verdict, "detail": detail, "seconds": seconds}), file=answer_to, flush=True)
    finally:
        process.kill()
        process.wait()


def _is_ready(process: subprocess.Popen[bytes]) -> bool:
    try:
        return read_frame(process.stdout.fileno()) == READY
    except (EOFError, GarbageError):
        return False


def _judge(session: Session, request: dict[str, Any]) -> tuple[str, str]:
    run = _test_inside if request["mode"] == "inside" else _test_outside
    try:
        session.load(request["program"])
        return run(session, request)
    except VerdictReached:
        return session.ending


def _test_outside(session: Session, request: dict[str, Any]) -> tuple[str, str]:
    """Runs the test in this process, over proxies; what the problem itself defines is not the program's to give."""
    namespace: dict[str, Any] = {"__name__": "test"}
    _run_trusted(session, lambda: exec(compile(request["preamble"], "<preamble>", "exec"), namespace))  # noqa: S102
    for name in request["names"]:
        if name == request["entry_point"] or name not in namespace:
            namespace[name] = Proxy(session, name)
    code = _run_trusted(session, lambda: compile(request["test"], "<test>", "exec"))
    if "random" in request["test"]:
        import random

        random.seed(0)
    try:
        exec(code, namespace)  # noqa: S102
    except BaseException as error:
        # An ending holds even where the test caught it and went on to fail by itself.
        return session.ending or _failure(session, error)
    if session.ending:
        return session.ending
    return ("passed", "") if session.num_calls else ("harness-error", "the test calls nothing of the program")


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
        return "wrong", ""
    if isinstance(error, MemoryError):
        return "out-of-memory", "in the test"
    if isinstance(error, (NameError, ImportError)) or not isinstance(error, Exception):
        return "harness-error", f"{kind} in the test: {error}"
    return "wrong", f"{kind} in the test"


def _test_inside(session: Session, request: dict[str, Any]) -> tuple[str, str]:
    """Has the test run beside the program; only the nonce, which the program's host reads last, is a pass."""
    nonce = secrets.token_bytes(NONCE_BYTES)
    message = ("test", 1, request["preamble"], request["entry_point"], tuple(request["names"]), request["test"])
    payload, _ = encode(message, [], is_exact=True)
    descriptor = session.process.stdin.fileno()
    try:
        write_frame(descriptor, payload)
        os.write(descriptor, nonce)
        answer = read_frame(session.process.stdout.fileno())
    except GarbageError as error:
        raise session.refused(str(error)) from None
    except (EOFError, BrokenPipeError):
        raise session.ended(*process_ending(session.process)) from None
    if hmac.compare_digest(answer, nonce):
        return "passed", ""
    try:
        answer, _ = decode(answer, [])
    except GarbageError as error:
        raise session.refused(str(error)) from None
    match answer:
        case ("failed", 1, (str(kind), *_), bool(is_from_test)):
            if is_from_test and kind == "AssertionError":
                return "wrong", ""
            return "out-of-memory" if kind == "MemoryError" else "exception", kind[:80]
        case _:
            return "refused", "wrote to the judge's pipe: not an answer"
