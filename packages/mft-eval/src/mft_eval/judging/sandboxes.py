"""The sandboxes of one server of judgements: a warm nursery forks each, and none is used twice."""

import contextlib
import os
import select
import signal
import socket
from subprocess import DEVNULL, Popen
from typing import Any

from mft_eval.sandbox.protocol import NUM_DESCRIPTORS, START, STARTED
from mft_eval.sandbox.walls import NAMESPACES

_MOST_OUTPUT_BYTES = 64 * 2**10
_END_SECONDS = 2.0


def ends_within(process: Any, seconds: float) -> bool:
    """Whether a child process, a Popen, ends in that time; told by the kernel at once, not found by asking again."""
    if process.poll() is not None:
        return True
    descriptor = os.pidfd_open(process.pid)
    try:
        has_ended = bool(select.select([descriptor], [], [], seconds)[0])
    finally:
        os.close(descriptor)
    if has_ended:
        process.wait()
    return has_ended


class Sandbox:
    """A started sandbox: pipes to and from its program, and what is written to its stderr.

    Where it did not start, the pipe from it is at its end at once.
    """

    def __init__(self, incoming: int, outgoing: int, noise: int, status: int, *, ends_at: int) -> None:
        self.incoming = incoming
        self.outgoing = outgoing
        self.process: int | None = None
        self._noise = noise
        self._status = status
        self._ends_at = ends_at

    def ended(self) -> tuple[str, str]:
        """The verdict on a program whose process is gone, or has closed the pipe."""
        if not select.select([self._status], [], [], 1.0)[0]:
            return "killed", "closed the judge's pipe"
        told = os.read(self._status, 16)
        status = int(told) if told.isdigit() else 128 + signal.SIGKILL
        if status <= 128:
            return "killed", f"left with status {status}"
        number = status - 128
        if number == signal.SIGXCPU:
            return "timeout", "CPU time"
        known = {item.value: item.name for item in signal.Signals}
        return "killed", known.get(number, f"signal {number}")

    def output(self) -> str:
        """The start of what was written to its stderr."""
        return os.pread(self._noise, _MOST_OUTPUT_BYTES, 0).decode("utf-8", "replace")

    def kill(self) -> None:
        """Has the kernel end the sandbox with everything in it."""
        if self.process is not None:
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(self.process, self._ends_at)

    def close(self) -> None:
        """Ends the sandbox and lets go of it."""
        self.kill()
        if self.process is not None:
            # It ends what is in its group and clears its folder away; one that does not is made to.
            if self._ends_at != signal.SIGKILL and not select.select([self.process], [], [], _END_SECONDS)[0]:
                signal.pidfd_send_signal(self.process, signal.SIGKILL)
            os.close(self.process)
        for descriptor in (self.incoming, self.outgoing, self._noise, self._status):
            os.close(descriptor)


class Nursery:
    """The process that forks sandboxes; started by `command` with the host's code as its first input."""

    def __init__(self, command: list[str], bundle: bytes, environment: dict[str, str], walls: str) -> None:
        self._command = command
        self._bundle = bundle
        self._environment = environment
        self._ends_at = signal.SIGKILL if walls == NAMESPACES else signal.SIGTERM
        self._processes = os.open("/proc", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        self._noise = os.memfd_create("noise")
        self._control, self._process = self._begin()

    def _begin(self) -> tuple[socket.socket, Any]:
        ours, theirs = socket.socketpair()
        with theirs:
            process: Any = Popen(
                self._command, stdin=theirs.fileno(), stdout=DEVNULL, stderr=self._noise, env=self._environment, cwd="/"
            )
        # One that does not start has said why.
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            ours.sendall(self._bundle)
        return ours, process

    def start(self) -> Sandbox:
        """The next sandbox."""
        if self._process.poll() is not None:
            self._control.close()
            self._control, self._process = self._begin()
        given, outgoing = os.pipe()
        incoming, answers = os.pipe()
        status, told = os.pipe()
        noise = os.memfd_create("noise")
        sandbox = Sandbox(incoming, outgoing, noise, status, ends_at=self._ends_at)
        message, received = b"", []
        try:
            socket.send_fds(self._control, [START], [given, answers, noise, told, self._processes])
            message, received, _, _ = socket.recv_fds(self._control, 1, NUM_DESCRIPTORS)
        except (BrokenPipeError, ConnectionResetError):
            pass
        for descriptor in (given, answers, told):
            os.close(descriptor)
        if message == STARTED:
            (sandbox.process,) = received
        elif not message:
            # The nursery itself did not start.
            os.pwrite(noise, os.pread(self._noise, _MOST_OUTPUT_BYTES, 0), 0)
        return sandbox

    def close(self) -> None:
        """Ends the nursery; what it forked ends with it."""
        self._control.close()
        if not ends_within(self._process, _END_SECONDS):
            self._process.kill()
            self._process.wait()
        os.close(self._noise)
        os.close(self._processes)
