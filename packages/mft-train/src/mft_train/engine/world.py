"""Which of how many processes this one is, read once from the variables of whatever launcher started it."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

from mft_train.errors import TrainError

if TYPE_CHECKING:
    from collections.abc import Mapping, MutableMapping

START = "start it with `mft-train launch --processes N`, torchrun, or srun with one task for each process"
# Variables by which `accelerate launch` asks for an engine that this program does not run.
UNKNOWN_ENGINES = {
    "ACCELERATE_USE_DEEPSPEED": "DeepSpeed",
    "ACCELERATE_USE_FSDP": "FSDP",
    "ACCELERATE_USE_MEGATRON_LM": "Megatron-LM",
    "ACCELERATE_USE_PARALLELISM_CONFIG": "a parallelism config",
}
# Variables of MPI launchers, which alone do not say where the other processes are.
MPI_SIZES = ("OMPI_COMM_WORLD_SIZE", "PMI_SIZE", "MV2_COMM_WORLD_SIZE")
FIRST_PORT, NUM_PORTS = 20_000, 10_000


@dataclass(frozen=True, slots=True)
class World:
    """This process among those of the run: ranks are numbered machine by machine, as many on each."""

    rank: int = 0
    world_size: int = 1
    local_rank: int = 0
    local_world_size: int = 1

    @property
    def node(self) -> int:
        """The number of this machine, from 0."""
        return self.rank // self.local_world_size

    @property
    def num_nodes(self) -> int:
        """The number of machines."""
        return self.world_size // self.local_world_size

    @property
    def is_main(self) -> bool:
        """Whether this is the process that writes and talks."""
        return self.rank == 0

    def __str__(self) -> str:
        return f"rank {self.rank} of {self.world_size}, local rank {self.local_rank} of {self.local_world_size}"


def is_started_rank(environment: Mapping[str, str]) -> bool:
    """Whether a launcher has started this process as one of several, or says that it is the only one."""
    return "RANK" in environment or "LOCAL_RANK" in environment or num_slurm_tasks(environment) > 1


def read_world(environment: Mapping[str, str]) -> World:
    """The world that a launcher's variables describe, one process without any; raises TrainError.

    Read are torchrun's (RANK, WORLD_SIZE, LOCAL_RANK, LOCAL_WORLD_SIZE; `accelerate launch` and our own launcher set
    them too) and those that SLURM's srun sets by itself. Half a description is an error: a process that took itself
    for the only one would train alone, beside others that do the same.
    """
    for variable, name in UNKNOWN_ENGINES.items():
        if environment.get(variable, "false").lower() in ("1", "true", "yes"):
            raise TrainError(
                f"accelerate asks for {name} ({variable}), which the launcher does not decide here",
                fix="launch without --config_file and its settings: the run's config has `distributed`, and "
                "`mft-train import-mftcoder --accelerate FILE` makes it of them",
            )
    if "RANK" in environment or "LOCAL_RANK" in environment:
        return checked(torchrun_world(environment), environment)
    if num_slurm_tasks(environment) > 1:
        return checked(slurm_world(environment), environment)
    for variable in MPI_SIZES:
        if number(environment, variable, 1) > 1:
            raise TrainError(f"{variable} says that there are other processes, but nothing says RANK", fix=START)
    return World()


def torchrun_world(environment: Mapping[str, str]) -> World:
    """The world in torchrun's variables; LOCAL_WORLD_SIZE may be missing where it can only be 1."""
    world_size = number(environment, "WORLD_SIZE")
    rank, local_rank = number(environment, "RANK"), number(environment, "LOCAL_RANK")
    return World(rank, world_size, local_rank, number(environment, "LOCAL_WORLD_SIZE", 1 if world_size == 1 else None))


def slurm_world(environment: Mapping[str, str]) -> World:
    """The world in the variables of a job step of srun."""
    tasks = environment.get("SLURM_STEP_TASKS_PER_NODE", environment.get("SLURM_TASKS_PER_NODE", ""))
    counts = set(re.findall(r"(?:^|,)(\d+)", tasks))
    if len(counts) != 1:
        raise TrainError(f'srun runs "{tasks}" tasks on its machines', fix="let each run as many: --ntasks-per-node=N")
    return World(
        number(environment, "SLURM_PROCID"),
        num_slurm_tasks(environment),
        number(environment, "SLURM_LOCALID"),
        int(counts.pop()),
    )


def num_slurm_tasks(environment: Mapping[str, str]) -> int:
    """Tasks of the job step that srun runs this process in; 1 outside of one, as in a batch script."""
    return number(environment, "SLURM_STEP_NUM_TASKS", 1)


def number(environment: Mapping[str, str], variable: str, default: int | None = None) -> int:
    """The whole number in a variable; raises TrainError if it is none, or missing without a default."""
    text = environment.get(variable)
    if text is None and default is not None:
        return default
    if text is None:
        raise TrainError(f"this process is started as one of several, but {variable} is not set", fix=START)
    if not text.isdecimal():
        raise TrainError(f'{variable} is "{text}", not a number', fix=START)
    return int(text)


def checked(world: World, environment: Mapping[str, str]) -> World:
    """The same world; raises TrainError if its numbers do not fit together."""
    fits = (
        world.rank < world.world_size
        and 0 < world.local_world_size <= world.world_size
        and world.world_size % world.local_world_size == 0
        and world.rank % world.local_world_size == world.local_rank
        and number(environment, "GROUP_RANK", world.node) == world.node
    )
    if not fits:
        raise TrainError(
            f"the launcher's variables do not fit together: {world}",
            fix="start as many processes on every machine, numbered machine by machine",
        )
    return world


def announce(world: World, environment: MutableMapping[str, str]) -> None:
    """Sets torchrun's variables to what was read, for the libraries that look there; raises TrainError.

    Under srun alone the first machine of the job step answers, at a port made of the job's number.
    """
    names = {"RANK": world.rank, "WORLD_SIZE": world.world_size, "LOCAL_RANK": world.local_rank}
    environment["LOCAL_WORLD_SIZE"] = str(world.local_world_size)
    if world.world_size == 1 and not is_started_rank(environment):
        return
    environment.update({name: str(value) for name, value in names.items()})
    if "MASTER_ADDR" not in environment:
        hosts = environment.get("SLURM_STEP_NODELIST", environment.get("SLURM_NODELIST", ""))
        if world.num_nodes == 1:
            environment["MASTER_ADDR"] = "127.0.0.1"
        elif host := first_host(hosts):
            environment["MASTER_ADDR"] = host
        else:
            raise TrainError("MASTER_ADDR is not set", fix="set it to the first machine's name")
    if "MASTER_PORT" not in environment:
        job = number(environment, "SLURM_JOB_ID", 0)
        environment["MASTER_PORT"] = str(FIRST_PORT + job % NUM_PORTS)


def first_host(hosts: str) -> str:
    """The first name of a SLURM list such as `gpu[07-09,12],login1`, here gpu07."""
    found = re.match(r"([^\[,]*)(?:\[(\w+)[^\]]*\])?([^,\[]*)", hosts)
    return f"{found[1]}{found[2] or ''}{found[3]}" if found else ""
