"""A test of a whole program by its input and output; what it should print never enters the sandbox."""

from __future__ import annotations

import os
import signal
import time
from decimal import Decimal, InvalidOperation

from mft_eval.sandbox.protocol import BUILD_SECONDS
from mft_eval.wire.channel import read_frame, write_frame
from mft_eval.wire.codec import GarbageError, TooLargeError, decode, encode

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

NONCE_BYTES = 16


def run_script_test(request: dict[str, Any], incoming: int, outgoing: int, begin: Callable[[], None]) -> dict[str, Any]:
    """The outcome of the request's program over its cases, up to the first that fails, with its seconds.

    The building has a deadline of its own; then `begin` is called, and the seconds are counted anew. Each case has its
    own deadline. Where the request asks for a nonce, the tests are part of the program, get it as
    the input of the only case and print it after their last one.
    """
    start = time.perf_counter()

    def outcome(verdict: str, detail: str = "", **said: str) -> dict[str, Any]:
        return {"verdict": verdict, "detail": detail, "seconds": time.perf_counter() - start, **said}

    try:
        files, build, run = request["files"], tuple(request["build"]), tuple(request["run"])
        if build:
            signal.setitimer(signal.ITIMER_REAL, BUILD_SECONDS)
        _send(outgoing, ("script", request["limits"], files, build, run))
        _, _, status, said = _receive(incoming, "built", 0)
        if status != 0:
            return outcome("exception", "does not compile", said=said)
        if build:
            begin()
            start = time.perf_counter()
        nonce = os.urandom(NONCE_BYTES).hex()
        cases = [(nonce, nonce)] if request["is_beside"] else request["cases"]
        if not cases:
            return outcome("harness-error", "there is nothing to compare with")
        for case, (given, expected) in enumerate(cases):
            signal.setitimer(signal.ITIMER_REAL, request["timeout_seconds"])
            cpu_seconds = int(request["timeout_seconds"]) + 2
            _send(outgoing, ("case", case, given.encode("utf-8", "surrogatepass"), cpu_seconds))
            _, _, status, output = _receive(incoming, "output", case)
            verdict, detail = _verdict(status, output, expected, is_beside=request["is_beside"])
            if verdict != "passed":
                where = detail if request["is_beside"] else f"case {case + 1}{detail and f': {detail}'}"
                printed = output[:2000].decode("utf-8", "replace") if type(output) is bytes else ""
                return outcome(verdict, where, said=printed)
        return outcome("passed")
    except GarbageError as error:
        return outcome("refused", f"wrote to the judge's pipe: {error}")
    except TooLargeError:
        return outcome("harness-error", "an input too large for the codec")
    except (EOFError, BrokenPipeError):
        return outcome("program-ended")


def _send(outgoing: int, message: tuple[Any, ...]) -> None:
    write_frame(outgoing, encode(message, [], is_exact=True)[0])


def _receive(incoming: int, kind: str, number: int) -> tuple[Any, ...]:
    answer, _ = decode(read_frame(incoming), [])
    if type(answer) is not tuple or len(answer) != 4 or answer[:2] != (kind, number):
        raise GarbageError("not an answer")
    return answer


def _verdict(status: Any, output: Any, expected: str, *, is_beside: bool) -> tuple[str, str]:
    if type(output) is not bytes or not (status is None or type(status) is int):
        return "refused", "wrote to the judge's pipe: not an answer"
    if status is None:
        return "refused", "an output too large for the codec"
    if status == -signal.SIGXCPU:
        return "timeout", "CPU time"
    if status < 0:
        known = {item.value: item.name for item in signal.Signals}
        return ("wrong", "aborted") if is_beside and status == -signal.SIGABRT else ("killed", known.get(-status, ""))
    if status > 0:
        return "exception", f"left with status {status}"
    printed = output.decode("utf-8", "replace")
    is_right = printed.endswith(expected) if is_beside else same_output(printed, expected)
    return ("passed", "") if is_right else ("wrong", "left before the last test" if is_beside else "")


def same_output(printed: str, expected: str) -> bool:
    """Whether two outputs are equal line by line, but for space at the ends of lines and of the whole, and for how
    numbers are written: 1.50 is 1.5.
    """
    left, right = ([line.strip() for line in text.strip().split("\n")] for text in (printed, expected))
    return len(left) == len(right) and all(map(_same_line, left, right))


def _same_line(left: str, right: str) -> bool:
    if left == right:
        return True
    lefts, rights = left.split(), right.split()
    return len(lefts) == len(rights) and all(map(_same_word, lefts, rights))


def _same_word(left: str, right: str) -> bool:
    if left == right:
        return True
    try:
        return Decimal(left) == Decimal(right)
    except InvalidOperation:
        return False
