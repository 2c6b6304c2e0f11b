"""Starting the processes of this machine through accelerate's launcher, and their end in one line."""

from __future__ import annotations

import logging
import os
import signal
import tempfile
from typing import TYPE_CHECKING

import click

from mft_train.errors import TrainError, first_line
from mft_train.planning.out_of_memory import advice
from mft_train.running.machines import SHUTDOWN, launcher_options

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError

    from mft_train.config.config import RunConfig
    from mft_train.running.machines import Machines

# Exit codes of a rank that a signal ended, after its checkpoint.
INTERRUPTED = (128 + signal.SIGINT, 128 + signal.SIGTERM)
# Exit code of a rank that ended for nothing but the end of another: its launcher says so, once for all of them.
LOST_PEER = 76


def start_processes(config: RunConfig, arguments: Sequence[str], asked: Machines) -> None:
    """Runs `mft-train` with `arguments` in each of this machine's ranks; raises TrainError."""
    from accelerate.commands.launch import launch_command, launch_command_parser
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError

    # Every rank prints its own error in one line; the launcher's report would bury it.
    logging.getLogger("torch.distributed.elastic").setLevel(logging.CRITICAL)
    for name, value in SHUTDOWN.items():
        os.environ.setdefault(name, value)
    options = launcher_options(asked, os.environ)
    try:
        # Without one, the launcher makes a folder for logs and leaves it behind.
        with tempfile.TemporaryDirectory(prefix="mft-train-") as log_dir:
            options += [f"--log_dir={log_dir}", "--module", "mft_train"]
            launch_command(launch_command_parser().parse_args([*options, *arguments, *asked.options()]))
    except ChildFailedError as error:
        raise cause(error, config, asked) from error
    except SignalException as error:
        # The launcher has passed the signal on and waited for the ranks to write their checkpoint.
        raise click.exceptions.Exit(128 + error.sigval) from error
    except (ConnectionError, RuntimeError) as error:
        if asked.machines == 1:
            raise
        raise unjoined(error, asked) from error


def cause(error: ChildFailedError, config: RunConfig, asked: Machines) -> Exception:
    """Why the ranks of this machine have ended, as the exception to raise."""
    failures = sorted(error.failures.items(), key=lambda pair: (pair[1].exitcode == LOST_PEER, pair[1].timestamp))
    rank, failure = failures[0]
    if failure.exitcode in INTERRUPTED:
        return click.exceptions.Exit(failure.exitcode)
    if failure.exitcode == -signal.SIGKILL:
        # Linux ends a process so, without a word of its own, when memory runs out.
        what = f"rank {rank} was killed, if by the system for want of memory"
        return TrainError(what, fix=advice(config))
    if failure.exitcode == LOST_PEER:
        if asked.machines == 1:
            return TrainError("a rank has ended, its message is above")
        return TrainError(
            f"the connection to other machines is lost: this is machine {asked.machine_rank} of {asked.machines}, "
            "a rank elsewhere has ended",
            fix="look at the output of the others, then start all of them again with --resume",
        )
    return TrainError(f"rank {rank} ended with exit code {failure.exitcode}, its message is above")


def unjoined(error: Exception, asked: Machines) -> TrainError:
    """Why the machines did not come together."""
    if isinstance(error, ConnectionError) or "EADDRINUSE" in str(error):
        return TrainError(
            f"the port of --main-address {asked.main_address} is in use", fix="choose another on all machines"
        )
    if asked.machine_rank == 0:
        return TrainError(
            f"fewer than {asked.machines} machines have come to {asked.main_address}: {first_line(error)}"
        )
    return TrainError(
        f"machine 0 does not answer at {asked.main_address}: {first_line(error)}",
        fix="start it too, and look at --main-address and firewalls",
    )
