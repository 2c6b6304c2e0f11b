"""Starting a run: as a rank in this process, or as the processes of this machine through accelerate's launcher."""

from __future__ import annotations

import contextlib
import logging
import os
import re
import warnings
from pathlib import Path
from typing import TYPE_CHECKING

import click

from mft_train.engine.network_interface import announce_interface
from mft_train.engine.world import announce, is_started_rank, read_world
from mft_train.errors import TrainError
from mft_train.planning.out_of_memory import memory_advice
from mft_train.rows.shared_memory import remove_stale
from mft_train.running.machines import check_started
from mft_train.running.run_lock import announce_launcher, follow_launcher, has_launcher
from mft_train.running.start_processes import LOST_PEER, start_processes

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from mft_train.config.config import RunConfig
    from mft_train.engine.world import World
    from mft_train.planning.plan import Plan
    from mft_train.running.machines import Machines

# What gloo, NCCL and torch's store say of another rank that is late, and of one that is gone.
LATE = re.compile("timed out waiting|timeout.*collective|collective.*timeout", re.IGNORECASE)
GONE = re.compile(
    "connection (closed|reset|refused)|remote process exited|broken pipe|socket closed|failed to recv", re.IGNORECASE
)


def launch(
    config: RunConfig,
    arguments: Sequence[str],
    asked: Machines,
    *,
    is_resume: bool,
    is_overwrite: bool,
    is_forced: bool,
) -> Path:
    """Runs `config` to its end; the path of `final/`.

    A process that a launcher (accelerate, torchrun, SLURM's srun) has started is a rank and trains, unless it was told
    which machine it starts the ranks of. Otherwise the ranks of this machine are started, which run the same command
    line, `arguments`.
    """
    quiet_libraries(is_starting=asked.machine_rank is not None)
    if asked.machine_rank is None:
        world, is_rank = read_world(os.environ), is_started_rank(os.environ)
        if is_rank:
            check_started(asked, world)
        if is_rank or asked.world_size == 1:
            return run_rank(config, world, is_resume=is_resume, is_overwrite=is_overwrite, is_forced=is_forced)
    elif "RANK" in os.environ:
        raise TrainError(
            "--machine-rank is for a process that starts others, a launcher has started this one as a rank"
        )
    from mft_train.model.compute import run_device
    from mft_train.running.checks import check_device, check_inputs, check_output

    check_device(config, run_device())
    check_inputs(config, asked.world_size)
    check_output(Path(config.output), is_resume=is_resume, is_overwrite=is_overwrite)
    announce_launcher()
    if asked.machine_rank is not None:
        click.echo(
            f"machine {asked.machine_rank} of {asked.machines}: {asked.processes} of {asked.world_size} processes, "
            f"waiting for all machines at {asked.main_address}",
            err=True,
        )
    try:
        start_processes(config, arguments, asked)
    finally:
        remove_stale()  # of a rank that was killed
    return Path(config.output) / "final"


def run_rank(config: RunConfig, world: World, *, is_resume: bool, is_overwrite: bool, is_forced: bool) -> Path:
    """Trains in this process, one of the world; the path of `final/`."""
    announce(world, os.environ)
    announce_interface(world, os.environ)
    follow_launcher()
    from mft_train.engine.start import leaving_group
    from mft_train.running.train import train

    with memory_advice(config), lost_peers(config.timeout_seconds), leaving_group():
        return train(config, world, is_resume=is_resume, is_overwrite=is_overwrite, is_forced=is_forced)


@contextlib.contextmanager
def lost_peers(timeout_seconds: float) -> Iterator[None]:
    """Turns what gloo and NCCL raise in a rank when another has ended into one line: its own output tells the cause.

    Under our launcher, which says it once for all ranks of the machine, that is an exit code.
    """
    try:
        yield
    except RuntimeError as error:
        if LATE.search(str(error)):
            raise TrainError(
                f"another rank did not answer within timeout_seconds ({timeout_seconds:g})",
                fix="look at its output; if it only writes slowly, set more",
            ) from error
        if not GONE.search(str(error)):
            raise
        if has_launcher():
            raise click.exceptions.Exit(LOST_PEER) from error
        raise TrainError("another rank has ended", fix="look at its output, then start all with --resume") from error


def plan(config: RunConfig, num_processes: int, gpu_bytes: int | None = None) -> Plan:
    """The plan of a run, after the checks that it would begin with; raises TrainError."""
    quiet_libraries()
    from mft_train.planning.plan import make_plan
    from mft_train.running.checks import check_inputs

    return make_plan(config, check_inputs(config, num_processes), num_processes, gpu_bytes)


def quiet_libraries(*, is_starting: bool = False) -> None:
    """Keeps messages that a user cannot act on out of the run's output; errors still come through.

    `is_starting` is for a process that waits for other machines.
    """
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    # What torch's own code logs of machines that do not come together is in the exception too.
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "FATAL" if is_starting else "ERROR")
    if has_launcher() and not is_starting:
        os.environ["TORCH_CPP_LOG_LEVEL"] = "ERROR"  # a rank's watchdog of NCCL only logs
    for name in (
        "torch.distributed",
        "torch.distributed.elastic",
        "streaming",
        "accelerate",
        "bitsandbytes",
        "DeepSpeed",
    ):
        logging.getLogger(name).setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", category=FutureWarning)
    from transformers.utils import logging as transformers_logging

    transformers_logging.disable_progress_bar()
