"""One run at a time in a run directory, also when a killed run's ranks outlive their launcher for a while."""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import os
import signal
import sys
from typing import TYPE_CHECKING

import click

from mft_train.errors import TrainError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

# Names the process that started this rank, for `follow_launcher`.
LAUNCHER = "MFT_TRAIN_LAUNCHER"
PR_SET_PDEATHSIG = 1  # of Linux' prctl


@contextlib.contextmanager
def sole_run(run_dir: Path) -> Iterator[None]:
    """Holds the lock of an existing run directory; raises TrainError if another process does.

    The kernel drops the lock with the process, however it ends. A file system without locks gives no protection, which
    is said.
    """
    descriptor = os.open(run_dir, os.O_RDONLY | os.O_CLOEXEC)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        os.close(descriptor)
        raise TrainError(
            f'another run is writing to output "{run_dir}"', fix="wait for it, or end it, or choose another output"
        ) from error
    except OSError as error:
        click.echo(
            f'the file system of output "{run_dir}" has no locks ({error.strerror}): nothing keeps a second run out',
            err=True,
        )
    try:
        yield
    finally:
        os.close(descriptor)


def announce_launcher() -> None:
    """Tells the ranks that this process starts by which sign they can follow it."""
    os.environ[LAUNCHER] = str(os.getpid())


def has_launcher() -> bool:
    """Whether `mft-train launch` has started this process as a rank."""
    return LAUNCHER in os.environ


def follow_launcher() -> None:
    """Makes the end of the launcher, even by SIGKILL, a SIGTERM to this rank, which leaves a checkpoint.

    A rank has a session of its own, so that nothing else would end it.
    """
    launcher = os.environ.get(LAUNCHER)
    if launcher is None or sys.platform != "linux":
        return
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
    if os.getppid() != int(launcher):
        raise TrainError("the launcher has ended")
