"""Starting a run: in this process, or in N processes through accelerate's launcher."""

from __future__ import annotations

import contextlib
import logging
import os
import re
import signal
import socket
import tempfile
import warnings
from pathlib import Path
from typing import TYPE_CHECKING

import click

from mft_train.engine.world import announce, is_started_rank, read_world
from mft_train.errors import TrainError
from mft_train.planning.out_of_memory import advice, memory_advice
from mft_train.rows.shared_memory import remove_stale
from mft_train.running.run_lock import announce_launcher, follow_launcher

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from mft_train.config.config import RunConfig
    from mft_train.planning.plan import Plan

# Exit codes of a rank that a signal ended, after its checkpoint.
INTERRUPTED = (128 + signal.SIGINT, 128 + signal.SIGTERM)


def launch(
    config: RunConfig,
    arguments: Sequence[str],
    num_processes: int,
    *,
    is_resume: bool,
    is_overwrite: bool,
    is_forced: bool,
) -> Path:
    """Runs `config` to its end; the path of `final/`.

    A process that a launcher (accelerate, torchrun, SLURM's srun) has started is a rank and trains; otherwise
    `num_processes` ranks are started that run the same command line, `arguments`.
    """
    quiet_libraries()
    world, is_rank = read_world(os.environ), is_started_rank(os.environ)
    if is_rank and num_processes not in (1, world.world_size):
        raise TrainError(f"--processes {num_processes} was asked for, but a launcher has started {world.world_size}")
    if num_processes == 1 or is_rank:
        announce(world, os.environ)
        follow_launcher()
        from mft_train.engine.start import leaving_group
        from mft_train.running.train import train

        with memory_advice(config), lost_peers(config.timeout_seconds), leaving_group():
            return train(config, world, is_resume=is_resume, is_overwrite=is_overwrite, is_forced=is_forced)
    from mft_train.model.compute import run_device
    from mft_train.running.checks import check_device, check_inputs, check_output

    check_device(config, run_device())
    check_inputs(config, num_processes)
    check_output(Path(config.output), is_resume=is_resume, is_overwrite=is_overwrite)
    announce_launcher()
    try:
        start_processes(config, arguments, num_processes)
    finally:
        remove_stale()  # of a rank that was killed
    return Path(config.output) / "final"


@contextlib.contextmanager
def lost_peers(timeout_seconds: float) -> Iterator[None]:
    """Turns what gloo and NCCL raise in a rank when another has ended into one line: the launcher tells the cause."""
    try:
        yield
    except RuntimeError as error:
        if re.search("timed out waiting|timeout.*collective|collective.*timeout", str(error), re.IGNORECASE):
            raise TrainError(
                f"another rank did not answer within timeout_seconds ({timeout_seconds:g})",
                fix="look at its output; if it only writes slowly, set more",
            ) from error
        if not re.search("connection (closed|reset) by peer|remote process exited", str(error), re.IGNORECASE):
            raise
        raise TrainError("another rank has ended") from error


def plan(config: RunConfig, num_processes: int) -> Plan:
    """The plan of a run, after the checks that it would begin with; raises TrainError."""
    quiet_libraries()
    from mft_train.planning.plan import make_plan
    from mft_train.running.checks import check_inputs

    return make_plan(config, check_inputs(config, num_processes), num_processes)


def start_processes(config: RunConfig, arguments: Sequence[str], num_processes: int) -> None:
    """Runs `mft-train` with `arguments` in each of `num_processes` ranks on this machine; raises TrainError."""
    from accelerate.commands.launch import launch_command, launch_command_parser
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError

    # Every rank prints its own error in one line; the launcher's report would bury it.
    logging.getLogger("torch.distributed.elastic").setLevel(logging.CRITICAL)
    cores = len(os.sched_getaffinity(0))
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, cores // num_processes)))
    # Seconds that ranks have after a signal to finish their step and write the checkpoint.
    os.environ.setdefault("TORCH_ELASTIC_SHUTDOWN_TIMEOUT", "600")
    options = [
        "--multi_gpu",
        "--num_machines=1",
        f"--num_processes={num_processes}",
        f"--main_process_port={free_port()}",
    ]
    options += ["--mixed_precision=no", "--dynamo_backend=no"]
    try:
        # Without one, the launcher makes a folder for logs and leaves it behind.
        with tempfile.TemporaryDirectory(prefix="mft-train-") as log_dir:
            options += [f"--log_dir={log_dir}", "--module", "mft_train"]
            launch_command(launch_command_parser().parse_args([*options, *arguments]))
    except ChildFailedError as error:
        rank, failure = error.get_first_failure()
        if failure.exitcode in INTERRUPTED:
            raise click.exceptions.Exit(failure.exitcode) from error
        if failure.exitcode == -signal.SIGKILL:
            # Linux ends a process so, without a word of its own, when memory runs out.
            what = f"rank {rank} was killed, if by the system for want of memory"
            raise TrainError(what, fix=advice(config)) from error
        raise TrainError(f"rank {rank} ended with exit code {failure.exitcode}, its message is above") from error
    except SignalException as error:
        # The launcher has passed the signal on and waited for the ranks to write their checkpoint.
        raise click.exceptions.Exit(128 + error.sigval) from error


def free_port() -> int:
    """A TCP port that is free now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def quiet_libraries() -> None:
    """Keeps messages that a user cannot act on out of the run's output; errors still come through."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
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
