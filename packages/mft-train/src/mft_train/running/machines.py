"""The processes of a run over one machine or several, and the command of accelerate's launcher that starts them."""

from __future__ import annotations

import os
import shlex
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import click

from mft_train.engine.world import is_started_rank
from mft_train.errors import TrainError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from mft_train.engine.world import World

# Seconds that ranks have after a signal to finish their step and write the checkpoint.
SHUTDOWN = {"TORCH_ELASTIC_SHUTDOWN_TIMEOUT": "600"}


@dataclass(frozen=True, slots=True)
class Machines:
    """What was asked for on the command line: as many processes on each machine.

    `machine_rank` is None for a process that starts none on several machines: a rank, or one that only prints.
    `main_address` is HOST:PORT of machine 0, None for one machine.
    """

    processes: int = 1
    machines: int = 1
    machine_rank: int | None = None
    main_address: str | None = None

    @property
    def world_size(self) -> int:
        """Processes over all machines."""
        return self.processes * self.machines

    def options(self) -> list[str]:
        """The options by which each rank checks that it runs in what was asked for."""
        return ["--processes", str(self.processes), "--machines", str(self.machines)]


def split_address(address: str) -> tuple[str, int]:
    """Host and port of HOST:PORT; raises ValueError. An IPv6 host stands in brackets."""
    host, separator, port = address.rpartition(":")
    if not separator or not host or not port.isdecimal() or not 0 < int(port) < 2**16:
        raise ValueError(f"{address} is not HOST:PORT")
    return host.removeprefix("[").removesuffix("]"), int(port)


def check_usage(asked: Machines, environment: Mapping[str, str], *, is_printing: bool) -> Machines:
    """The same, without what means nothing to one machine; raises click's UsageError for options that do not fit."""
    if asked.main_address is not None:
        try:
            split_address(asked.main_address)
        except ValueError as error:
            raise click.UsageError(f"--main-address {error}, such as 10.0.0.1:29500") from error
    if asked.machine_rank is not None and asked.machine_rank >= asked.machines:
        raise click.UsageError(f"--machine-rank {asked.machine_rank} is not below --machines {asked.machines}")
    if asked.machines == 1:
        return Machines(asked.processes)
    is_rank = is_started_rank(environment) and asked.machine_rank is None and not is_printing
    if asked.main_address is None and not is_rank:
        raise click.UsageError("--machines needs --main-address HOST:PORT, by which all machines reach machine 0")
    if asked.machine_rank is None and not is_rank and not is_printing:
        raise click.UsageError("--machines needs --machine-rank R, on each machine its own number from 0")
    return asked


def check_started(asked: Machines, world: World) -> None:
    """Raises TrainError in a rank if a launcher has started another number of processes than was asked for.

    One, the default of both options, is no wish.
    """
    for option, wish, found, unit in (
        ("--processes", asked.processes, world.local_world_size, "processes on this machine"),
        ("--machines", asked.machines, world.num_nodes, "machines"),
    ):
        if wish not in (1, found):
            raise TrainError(
                f"{option} {wish} was asked for, but a launcher has started {found} {unit}",
                fix="--processes counts those of one machine; leave both options to the launcher",
            )


def launcher_options(asked: Machines, environment: Mapping[str, str]) -> list[str]:
    """Options of `accelerate launch` for the processes of one machine."""
    threads = max(1, len(os.sched_getaffinity(0)) // asked.processes)
    options = [
        # Its only launcher of several processes, which also start where there is no GPU; `--cpu` starts one alone.
        "--multi_gpu",
        f"--num_machines={asked.machines}",
        f"--num_processes={asked.world_size}",  # accelerate counts those of all machines
        f"--num_cpu_threads_per_process={environment.get('OMP_NUM_THREADS', threads)}",
        "--mixed_precision=no",
        "--dynamo_backend=no",
    ]
    if asked.main_address is None:
        return [*options, "--main_process_port=0"]  # any that is free
    host, port = split_address(asked.main_address)
    options += [f"--machine_rank={asked.machine_rank}", f"--main_process_ip={host}", f"--main_process_port={port}"]
    return [*options, "--same_network"]


def printed_commands(asked: Machines, arguments: Sequence[str], environment: Mapping[str, str]) -> str:
    """One line of shell for each machine, machine 0 first: what `mft-train launch` with `arguments` runs there."""
    program = ["cd", str(Path.cwd()), "&&"]
    if asked.world_size == 1:
        return join([*program, sys.executable, "-m", "mft_train", *arguments])
    program += [f"{name}={value}" for name, value in SHUTDOWN.items()]
    program += [sys.executable, "-m", "accelerate.commands.launch"]
    chosen = range(asked.machines) if asked.machine_rank is None else [asked.machine_rank]
    return "\n".join(
        join(
            [
                *program,
                *launcher_options(replace(asked, machine_rank=rank), environment),
                "--module",
                "mft_train",
                *arguments,
                *asked.options(),
            ]
        )
        for rank in chosen
    )


def join(words: Sequence[str]) -> str:
    """A line of shell; `&&` stays what it is."""
    return " ".join(word if word == "&&" else shlex.quote(word) for word in words)
