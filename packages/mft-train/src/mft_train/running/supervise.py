"""Runs a command until it ends, its time is up, or the process that wanted it is gone; nothing of it is left then.

A program of its own, `supervise.py SECONDS COMMAND...`, that imports nothing but the standard library. Whoever starts
it holds the other end of its stdin: however that process ends, the command ends too.
"""

import contextlib
import os
import select
import signal
import subprocess
import sys
import time

TIMED_OUT, ABANDONED = 124, 125  # exit codes
POLL_SECONDS = 0.05
GRACE_SECONDS = 5.0


def main() -> int:
    """The exit code of the command, or one of those above."""
    seconds, *command = sys.argv[1:]
    deadline = time.monotonic() + float(seconds)
    with subprocess.Popen(command, stdin=subprocess.DEVNULL, start_new_session=True) as child:
        ended = None
        while ended is None and child.poll() is None:
            # Nothing is ever written there: what can be read is its end.
            if select.select([0], [], [], POLL_SECONDS)[0]:
                ended = ABANDONED
            elif time.monotonic() >= deadline:
                ended = TIMED_OUT
        end_group(child)
    if ended is not None:
        return ended
    return child.returncode if child.returncode >= 0 else 128 - child.returncode


def end_group(child: subprocess.Popen[bytes]) -> None:
    """Ends what is left of the command: with a word first, by force after a while."""
    deadline = time.monotonic() + GRACE_SECONDS
    with contextlib.suppress(ProcessLookupError):
        os.killpg(child.pid, signal.SIGTERM)
        while time.monotonic() < deadline:
            child.poll()  # a process that has ended stays in its group until it is asked for
            os.killpg(child.pid, 0)
            time.sleep(POLL_SECONDS)
        os.killpg(child.pid, signal.SIGKILL)


if __name__ == "__main__":
    sys.exit(main())
