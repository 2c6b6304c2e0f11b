"""Whole programs inside the sandbox: builds one, runs it on each input that the judge sends; standard library only."""

from __future__ import annotations

import os
import resource
import signal

from mft_eval.sandbox.protocol import BUILD_SECONDS
from mft_eval.wire.channel import read_frame, write_frame
from mft_eval.wire.codec import MAX_PAYLOAD_BYTES, decode, encode

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

_MOST_OUTPUT_BYTES = MAX_PAYLOAD_BYTES - 2**16
_SAID = 2000
# Its keeper is the first process there.
_HOST_IN_NAMESPACE = 2


def run_scripts(
    incoming: int,
    outgoing: int,
    raise_own_wall: Callable[[], None],
    files: dict[str, str],
    build: tuple[str, ...],
    run: tuple[str, ...],
) -> None:
    """Answers ("built", 0, status, what the compiler said), then each input with ("output", number, status, stdout).

    Each run is a process of its own with an empty stderr; whatever it leaves running is killed after it. A status is an
    exit code, or minus the number of a signal; an output beyond the cap is cut, and its status then is None.
    """
    for name, content in files.items():
        with open(name, "w", encoding="utf-8", errors="surrogatepass") as file:  # noqa: PTH123
            file.write(content)
    status, said = (0, b"") if not build else _run(build, b"", BUILD_SECONDS, lambda: None, is_stderr_kept=True)
    _send(outgoing, ("built", 0, status, said[:_SAID].decode("utf-8", "replace")))
    while True:
        try:
            message, _ = decode(read_frame(incoming), [])
        except EOFError:
            return
        _, number, given, cpu_seconds = message
        status, output = _run(run, given, cpu_seconds, raise_own_wall, is_stderr_kept=False)
        is_cut = len(output) > _MOST_OUTPUT_BYTES
        _send(outgoing, ("output", number, None if is_cut else status, output[:_MOST_OUTPUT_BYTES]))


def _send(outgoing: int, message: tuple[Any, ...]) -> None:
    write_frame(outgoing, encode(message, [], is_exact=True)[0])


def _run(
    command: tuple[str, ...], given: bytes, cpu_seconds: int, raise_wall: Callable[[], None], *, is_stderr_kept: bool
) -> tuple[int, bytes]:
    """The status and output of one process; files, not pipes, so that neither end waits for the other."""
    stdin, stdout = os.memfd_create("stdin"), os.memfd_create("stdout")
    os.pwrite(stdin, given, 0)
    child = os.fork()
    if child == 0:
        try:
            os.dup2(stdin, 0)
            os.dup2(stdout, 1)
            if is_stderr_kept:
                os.dup2(stdout, 2)
            resource.setrlimit(resource.RLIMIT_CPU, (cpu_seconds, cpu_seconds))
            raise_wall()
            os.execvp(command[0], command)  # noqa: S606
        finally:
            os._exit(127)
    _, status = os.waitpid(child, 0)
    _kill_others()
    output = os.pread(stdout, _MOST_OUTPUT_BYTES + 1, 0)
    os.close(stdin)
    os.close(stdout)
    return os.waitstatus_to_exitcode(status), output


def _kill_others() -> None:
    """Kills every process of the sandbox but this one and its first; without a pid namespace there are no others."""
    if os.getpid() != _HOST_IN_NAMESPACE:
        return
    try:
        os.kill(-1, signal.SIGKILL)
    except ProcessLookupError:
        return
    while True:
        try:
            os.waitpid(-1, 0)
        except ChildProcessError:
            return
