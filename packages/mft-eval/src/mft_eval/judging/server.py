"""A server of judgements: for each program a fork of this process as its judge and a sandbox of its own.

It is a clean process with nothing but the standard library. It reads settings and then requests from stdin, a line of
JSON each, and answers each request with a line on stdout. While one program is judged, the next sandbox starts: none is
used twice. The end of stdin, also in the middle of a request, ends everything that it has started.
"""

import contextlib
import json
import os
import resource
import select
import signal
import time
from dataclasses import dataclass
from subprocess import PIPE, Popen, TimeoutExpired
from typing import Any

from mft_eval.judging.python_test import run_python_test
from mft_eval.judging.script_test import run_script_test
from mft_eval.judging.session import PROGRAM_ENDED, Session, VerdictReached
from mft_eval.sandbox.bundle import make_bundle
from mft_eval.sandbox.program_host import READY
from mft_eval.wire.channel import read_frame
from mft_eval.wire.codec import GarbageError

START_SECONDS = 30
# A whole bundle fits, so that the start of a sandbox waits for nobody.
_PIPE_BYTES = 2**18
_MEMORY_BYTES = 4 * 2**30
_MOST_OUTPUT_BYTES = 64 * 2**10


@dataclass(frozen=True, slots=True)
class Sandbox:
    """A started sandbox; `noise` is the descriptor of a file with what is written to its stderr."""

    process: Any  # a Popen with both pipes
    noise: int

    def ended(self) -> tuple[str, str]:
        """The verdict on a program whose process is gone, or has closed the pipe."""
        try:
            status = self.process.wait(timeout=1)
        except TimeoutExpired:
            return "killed", "closed the judge's pipe"
        if status <= 128:
            return "killed", f"left with status {status}"
        number = status - 128
        if number == signal.SIGXCPU:
            return "timeout", "CPU time"
        known = {item.value: item.name for item in signal.Signals}
        return "killed", known.get(number, f"signal {number}")

    def output(self) -> str:
        """The start of what was written to its stderr."""
        return os.pread(self.noise, _MOST_OUTPUT_BYTES, 0).decode("utf-8", "replace")

    def close(self) -> None:
        """Ends the sandbox with everything in it."""
        self.process.kill()
        self.process.wait()
        for pipe in (self.process.stdin, self.process.stdout):
            if pipe is not None:
                pipe.close()
        os.close(self.noise)


def main() -> None:
    """Serves until stdin ends."""
    requests, answers = os.dup(0), os.dup(1)
    null = os.open(os.devnull, os.O_RDWR)
    for standard in (0, 1):
        os.dup2(null, standard)
    lines = os.fdopen(requests, "rb")
    command = json.loads(lines.readline())["command"]
    bundle = make_bundle()
    sandbox = _start(command, bundle)
    try:
        while line := lines.readline():
            used, sandbox = sandbox, None
            try:
                outcome = _judge_apart(json.loads(line), used, requests, lambda: _start(command, bundle))
                sandbox = outcome.pop("next_sandbox")
                # The next request can come while the kernel takes the sandbox apart.
                used.process.kill()
                _write_all(answers, json.dumps(outcome).encode() + b"\n")
            finally:
                used.close()
    except BrokenPipeError:
        pass
    finally:
        if sandbox is not None:
            sandbox.close()


def _start(command: list[str], bundle: bytes) -> Sandbox:
    noise = os.memfd_create("noise")
    process: Any = Popen(command, bufsize=0, stdin=PIPE, stdout=PIPE, stderr=noise, pipesize=_PIPE_BYTES)
    # A sandbox that does not start has said why.
    with contextlib.suppress(BrokenPipeError):
        _write_all(process.stdin.fileno(), bundle)
    return Sandbox(process, noise)


def _write_all(descriptor: int, content: bytes) -> None:
    remaining = memoryview(content)
    while remaining:
        remaining = remaining[os.write(descriptor, remaining) :]


def _judge_apart(request: dict[str, Any], sandbox: Sandbox, requests: int, start_next: Any) -> dict[str, Any]:
    """What a fork of this process finds, which the kernel's alarm ends at the deadline whatever it is doing."""
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        _judge_and_exit(request, sandbox, writer)
    os.close(writer)
    outcome: dict[str, Any] = {}
    try:
        outcome["next_sandbox"] = start_next()
        found = _read_all(reader, requests)
    finally:
        os.close(reader)
        os.kill(child, signal.SIGKILL)
        _, status = os.waitpid(child, 0)
    lines = found.decode().splitlines()
    if len(lines) == 2:
        outcome |= json.loads(lines[1])
        if outcome["verdict"] == PROGRAM_ENDED:
            outcome["verdict"], outcome["detail"] = sandbox.ended()
    elif os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGALRM:
        timeout = {"verdict": "timeout", "detail": "", "seconds": request["timeout_seconds"]}
        late = {"verdict": "harness-error", "detail": f"the sandbox did not start in {START_SECONDS} s"}
        outcome |= timeout if lines else late
    else:
        outcome |= {"verdict": "harness-error", "detail": f"the judge ended by itself with status {status}"}
    if outcome["verdict"] == "harness-error" or request["limits"]["is_captured"]:
        outcome["output"] = sandbox.output()
    return outcome


def _read_all(reader: int, requests: int) -> bytes:
    """What the judge writes until it ends; raises BrokenPipeError when whoever asked is gone."""
    found = bytearray()
    while True:
        ready, _, _ = select.select([reader, requests], [], [])
        if requests in ready:
            # Nobody asks twice at a time: this is the end.
            raise BrokenPipeError
        part = os.read(reader, 2**16)
        if not part:
            return bytes(found)
        found += part


def _judge_and_exit(request: dict[str, Any], sandbox: Sandbox, writer: int) -> None:
    """The judge's whole life, in a fork: writes an empty line when the program's time begins, then its outcome."""
    try:
        signal.signal(signal.SIGALRM, signal.SIG_DFL)
        signal.setitimer(signal.ITIMER_REAL, START_SECONDS)
        incoming, outgoing = sandbox.process.stdout.fileno(), sandbox.process.stdin.fileno()
        if not _is_ready(incoming):
            outcome = {"verdict": "harness-error", "detail": "the sandbox did not start"}
        else:
            os.write(writer, b"\n")
            resource.setrlimit(resource.RLIMIT_AS, (_MEMORY_BYTES, _MEMORY_BYTES))
            signal.setitimer(signal.ITIMER_REAL, request["timeout_seconds"])
            outcome = _outcome(request, incoming, outgoing)
        signal.setitimer(signal.ITIMER_REAL, 0)
        if outcome["detail"] == "the sandbox did not start":
            os.write(writer, b"\n")
        _write_all(writer, json.dumps(outcome).encode() + b"\n")
    except BaseException as error:
        os.write(2, f"{type(error).__name__}: {error}\n".encode())
    finally:
        os._exit(0)


def _outcome(request: dict[str, Any], incoming: int, outgoing: int) -> dict[str, Any]:
    start = time.perf_counter()
    if request["kind"] == "script":
        return {**run_script_test(request, incoming, outgoing), "seconds": time.perf_counter() - start}
    session = Session(incoming, outgoing, may_use_objects=request["may_use_objects"])
    verdict, detail = run_python_test(session, request)
    outcome: dict[str, Any] = {"verdict": verdict, "detail": detail, "seconds": time.perf_counter() - start}
    outcome |= {"uses_objects": session.uses_objects, "programs_word": session.programs_word}
    outcome["measures"] = session.measures
    if request["limits"]["is_captured"]:
        error = f"{session.last_error_name}: {session.last_error}" if session.last_error else ""
        outcome |= {"line": session.failed_line, "call": _shown_ask(session.last_ask), "error": error[:2000]}
    return outcome


def _shown_ask(ask: tuple[Any, ...]) -> str:
    """The last call of the test, as text."""
    if not ask or ask[0] != "call":
        return " ".join(map(str, ask[:1]))
    try:
        arguments = [*map(repr, ask[2]), *(f"{name}={value!r}" for name, value in ask[3].items())]
    except (VerdictReached, Exception):
        # An argument is an object of the program's, which may be gone.
        return f"{ask[1]._handle_name}(...)"
    return f"({', '.join(arguments)})"[:2000]


def _is_ready(incoming: int) -> bool:
    try:
        return read_frame(incoming) == READY
    except (EOFError, GarbageError):
        return False
