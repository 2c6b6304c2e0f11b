"""Who a process is: the variables of every launcher, and every half description an error."""

import pytest

from mft_train.engine.world import World, announce, first_host, is_started_rank, read_world
from mft_train.errors import TrainError

TORCHRUN = {"RANK": "5", "WORLD_SIZE": "8", "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "4", "GROUP_RANK": "1"}
SLURM = {
    "SLURM_PROCID": "5",
    "SLURM_STEP_NUM_TASKS": "8",
    "SLURM_LOCALID": "1",
    "SLURM_STEP_TASKS_PER_NODE": "4(x2)",
    "SLURM_STEP_NODELIST": "gpu[07-08]",
    "SLURM_JOB_ID": "123456",
}


@pytest.mark.parametrize("environment", [TORCHRUN, SLURM])
def test_every_launcher_describes_the_same_world(environment):
    world = read_world(environment)
    assert world == World(rank=5, world_size=8, local_rank=1, local_world_size=4)
    assert (world.node, world.num_nodes, world.is_main) == (1, 2, False)
    assert is_started_rank(environment)


def test_a_process_without_a_launcher_is_alone():
    assert read_world({"HOME": "/root"}) == World()
    assert not is_started_rank({})
    # A batch script of SLURM, and a shell that srun has started, are no ranks.
    assert read_world({"SLURM_PROCID": "0", "SLURM_NTASKS": "8"}) == World()
    assert read_world({"SLURM_PROCID": "0", "SLURM_STEP_NUM_TASKS": "1"}) == World()


def without(name):
    return {key: value for key, value in TORCHRUN.items() if key != name}


@pytest.mark.parametrize(
    ("environment", "message"),
    [
        (without("LOCAL_WORLD_SIZE"), "LOCAL_WORLD_SIZE is not set"),
        (without("WORLD_SIZE"), "WORLD_SIZE is not set"),
        (without("RANK"), "RANK is not set"),
        (without("LOCAL_RANK"), "LOCAL_RANK is not set"),
        ({"LOCAL_RANK": "0"}, "WORLD_SIZE is not set"),
        (TORCHRUN | {"RANK": "8"}, "do not fit together: rank 8 of 8"),
        (TORCHRUN | {"LOCAL_RANK": "2"}, "do not fit together"),
        (TORCHRUN | {"LOCAL_WORLD_SIZE": "3"}, "do not fit together"),
        (TORCHRUN | {"GROUP_RANK": "0"}, "do not fit together"),
        (TORCHRUN | {"WORLD_SIZE": "many"}, 'WORLD_SIZE is "many", not a number'),
        (SLURM | {"SLURM_STEP_TASKS_PER_NODE": "5,3"}, 'srun runs "5,3" tasks'),
        ({"OMPI_COMM_WORLD_SIZE": "2"}, "OMPI_COMM_WORLD_SIZE says that there are other processes"),
        (TORCHRUN | {"ACCELERATE_USE_FSDP": "true"}, "accelerate asks for FSDP"),
        ({"ACCELERATE_USE_DEEPSPEED": "true"}, "accelerate asks for DeepSpeed"),
    ],
)
def test_half_a_description_is_an_error(environment, message):
    with pytest.raises(TrainError, match=message.replace("(", "\\(")):
        read_world(environment)


def test_a_single_rank_of_torchrun_needs_no_local_world_size():
    assert read_world({"RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0"}) == World()


def test_what_was_read_is_announced_to_the_libraries():
    environment = dict(SLURM)
    announce(read_world(environment), environment)
    assert read_world(environment) == read_world(SLURM)
    assert {name: environment[name] for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE")} == {
        "RANK": "5",
        "WORLD_SIZE": "8",
        "LOCAL_RANK": "1",
        "LOCAL_WORLD_SIZE": "4",
    }
    assert (environment["MASTER_ADDR"], environment["MASTER_PORT"]) == ("gpu07", "23456")
    alone = {}
    announce(World(), alone)
    assert alone == {"LOCAL_WORLD_SIZE": "1"}


@pytest.mark.parametrize(
    ("hosts", "first"),
    [("gpu[07-09,12],login1", "gpu07"), ("a,b", "a"), ("one", "one"), ("n[1-2]-ib", "n1-ib"), ("", "")],
)
def test_the_first_machine_of_a_list(hosts, first):
    assert first_host(hosts) == first
