"""A server of judgements: for each program a fork of this process as its judge and a sandbox of its own.

It is a clean process with nothing but the standard library. It reads settings, the code of its nursery and then
requests from stdin, settings and requests as a line of JSON each, and answers each request with a line on stdout. While
one program is judged, the next sandbox starts: none is used twice. The end of stdin, also in the middle of a request,
ends everything that it has started.
"""

import gc
import importlib
import json
import os
import resource
import select
import signal
import sys
import time
from collections.abc import Callable
from typing import Any

from mft_eval.judging.deadlines import START_SECONDS
from mft_eval.judging.python_test import run_python_test
from mft_eval.judging.sandboxes import Nursery, Sandbox
from mft_eval.judging.script_test import run_script_test
from mft_eval.judging.session import PROGRAM_ENDED, Session, VerdictReached
from mft_eval.sandbox.protocol import READY
from mft_eval.wire.channel import read_frame
from mft_eval.wire.codec import GarbageError

# What some tests import, loaded for all that follow when the first of them comes.
_WARM = ("random", "mft_eval.judging.unit_tests", "mft_eval.judging.differential")
_REHEARSAL = {
    "kind": "python",
    "mode": "outside",
    "may_use_objects": False,
    "program": "def f(x):\n    return [x, str(x), (x / 2, {x: True})]\n",
    "preamble": "from typing import List\n",
    "entry_point": "f",
    "names": ["f"],
    # The interpreter specializes code that has run a few times.
    "test": "for n in range(16):\n    assert f(n) == [n, str(n), (n / 2, {n: True})]\n",
    "limits": {
        "memory_bytes": 2**30,
        "memory_limit": "RLIMIT_AS",
        "cpu_seconds": 10,
        "num_processes": 16,
        "is_captured": False,
    },
}
_MEMORY_BYTES = 4 * 2**30


def main() -> None:
    """Serves until stdin ends."""
    requests, answers = os.dup(0), os.dup(1)
    null = os.open(os.devnull, os.O_RDWR)
    for standard in (0, 1):
        os.dup2(null, standard)
    lines = os.fdopen(requests, "rb")
    settings = json.loads(lines.readline())
    nursery = Nursery(
        settings["command"], lines.read(settings["num_bundle_bytes"]), settings["environment"], settings["walls"]
    )
    _rehearse(nursery)
    sandbox = nursery.start()
    # Its forks, the judges, share what is there now as long as nobody looks through it.
    gc.collect()
    gc.freeze()
    try:
        while line := lines.readline():
            used, sandbox = sandbox, None
            try:
                request = _placed(json.loads(line), settings["places"])
                _warm(request)
                outcome = _judge_apart(request, used, requests, nursery)
                sandbox = outcome.pop("next_sandbox")
                # The next request can come while the kernel takes the sandbox apart.
                used.kill()
                _write_all(answers, json.dumps(outcome).encode() + b"\n")
            finally:
                used.close()
    except BrokenPipeError:
        pass
    finally:
        if sandbox is not None:
            sandbox.close()
        nursery.close()


def _rehearse(nursery: Nursery) -> None:
    """Judges a program of our own in this process: what that loads and specializes the judges need not."""
    sandbox = nursery.start()
    try:
        if _is_ready(sandbox.incoming):
            _outcome(_REHEARSAL, sandbox.incoming, sandbox.outgoing)
    finally:
        sandbox.close()


def _warm(request: dict[str, Any]) -> None:
    """Loads what this and later judges need, so that no fork has to."""
    names = [name for name in _WARM if name not in sys.modules and name in request.get("test", "")]
    for name in names:
        importlib.import_module(name)
    if names:
        gc.freeze()


def _placed(request: dict[str, Any], places: dict[str, str]) -> dict[str, Any]:
    """The request with its commands' paths as the sandbox sees them."""
    for inside, outside in places.items():
        for words in ("build", "run"):
            if words in request:
                request[words] = [word.replace(inside, outside) for word in request[words]]
    return request


def _write_all(descriptor: int, content: bytes) -> None:
    remaining = memoryview(content)
    while remaining:
        remaining = remaining[os.write(descriptor, remaining) :]


def _judge_apart(request: dict[str, Any], sandbox: Sandbox, requests: int, nursery: Nursery) -> dict[str, Any]:
    """What a fork of this process finds, which the kernel's alarm ends at the deadline whatever it is doing."""
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        _judge_and_exit(request, sandbox, writer)
    os.close(writer)
    outcome: dict[str, Any] = {}
    try:
        outcome["next_sandbox"] = nursery.start()
        found = _read_all(reader, requests)
        ended = time.perf_counter()
    finally:
        os.close(reader)
        os.kill(child, signal.SIGKILL)
        _, status = os.waitpid(child, 0)
    *starts, last = found.decode().split("\n")
    if last:
        outcome |= json.loads(last)
        if outcome["verdict"] == PROGRAM_ENDED:
            outcome["verdict"], outcome["detail"] = sandbox.ended()
    elif os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGALRM:
        outcome |= _late(request, list(map(float, starts)), ended)
    else:
        outcome |= {"verdict": "harness-error", "detail": f"the judge ended by itself with status {status}"}
    if outcome["verdict"] == "harness-error" or request["limits"]["is_captured"]:
        outcome["output"] = sandbox.output()
    return outcome


def _late(request: dict[str, Any], starts: list[float], ended: float) -> dict[str, Any]:
    """What the alarm means that came at `ended`, after these beginnings."""
    if not starts:
        return {"verdict": "harness-error", "detail": f"the sandbox did not start in {START_SECONDS} s"}
    is_built = not request.get("build") or len(starts) > 1
    return {"verdict": "timeout", "detail": "" if is_built else "while it was built", "seconds": ended - starts[-1]}


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
    """The judge's whole life, in a fork: writes a line with the time when the program's begins, then its outcome.

    A program that is built has two beginnings.
    """

    def begin() -> None:
        os.write(writer, f"{time.perf_counter()}\n".encode())

    try:
        signal.signal(signal.SIGALRM, signal.SIG_DFL)
        signal.setitimer(signal.ITIMER_REAL, START_SECONDS)
        incoming, outgoing = sandbox.incoming, sandbox.outgoing
        if not _is_ready(incoming):
            outcome = {"verdict": "harness-error", "detail": "the sandbox did not start"}
        else:
            begin()
            resource.setrlimit(resource.RLIMIT_AS, (_MEMORY_BYTES, _MEMORY_BYTES))
            signal.setitimer(signal.ITIMER_REAL, request["timeout_seconds"])
            outcome = _outcome(request, incoming, outgoing, begin)
        signal.setitimer(signal.ITIMER_REAL, 0)
        _write_all(writer, json.dumps(outcome).encode())
    except BaseException as error:
        os.write(2, f"{type(error).__name__}: {error}\n".encode())
    finally:
        os._exit(0)


def _outcome(
    request: dict[str, Any], incoming: int, outgoing: int, begin: Callable[[], None] = lambda: None
) -> dict[str, Any]:
    if request["kind"] == "script":
        return run_script_test(request, incoming, outgoing, begin)
    start = time.perf_counter()
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
