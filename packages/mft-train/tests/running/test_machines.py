"""The options of a launch on several machines, and the commands that it prints."""

import os
import shlex
import socket
import subprocess
import sys
from datetime import timedelta
from pathlib import Path

import pytest
from click.testing import CliRunner

from mft_train.cli import main
from mft_train.engine.network_interface import announce_interface, interface_towards
from mft_train.engine.world import World
from mft_train.errors import TrainError
from mft_train.running.machines import SHUTDOWN, Machines, check_started, split_address
from mft_train.running.run_lock import LAUNCHER
from mft_train.running.start_processes import unjoined

TWO = ["--machines", "2", "--main-address", "10.0.0.1:29500"]


@pytest.fixture
def launch(write_run, monkeypatch):
    for name in ("RANK", "LOCAL_RANK", "SLURM_STEP_NUM_TASKS"):
        monkeypatch.delenv(name, raising=False)
    config = write_run(max_steps=1, global_batch_size=4)
    return lambda *options: CliRunner().invoke(main, ["launch", str(config), *options])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--machines", "2", "--machine-rank", "0"], "--machines needs --main-address HOST:PORT"),
        (TWO, "--machines needs --machine-rank R"),
        ([*TWO, "--machine-rank", "2"], "--machine-rank 2 is not below --machines 2"),
        (["--machine-rank", "1"], "--machine-rank 1 is not below --machines 1"),
        (["--machines", "2", "--main-address", "gpu07", "--machine-rank", "0"], "gpu07 is not HOST:PORT"),
        (["--machines", "2", "--main-address", "gpu07:0", "--machine-rank", "0"], "gpu07:0 is not HOST:PORT"),
    ],
)
def test_options_that_do_not_fit_are_wrong_usage(launch, options, message):
    result = launch(*options)
    assert result.exit_code == 2
    assert message in result.stderr


def test_a_rank_does_not_start_others(launch, monkeypatch):
    for name, value in {"RANK": "0", "WORLD_SIZE": "2", "LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": "2"}.items():
        monkeypatch.setenv(name, value)
    result = launch(*TWO, "--machine-rank", "0")
    assert result.exit_code == 1
    assert "a launcher has started this one as a rank" in result.stderr


@pytest.mark.parametrize(
    ("address", "parts"),
    [("10.0.0.1:29500", ("10.0.0.1", 29500)), ("train-0.train:1", ("train-0.train", 1)), ("[::1]:7", ("::1", 7))],
)
def test_an_address_is_a_host_and_a_port(address, parts):
    assert split_address(address) == parts


def test_processes_are_those_of_one_machine():
    world = World(rank=3, world_size=4, local_rank=1, local_world_size=2)
    check_started(Machines(processes=2, machines=2), world)
    check_started(Machines(), world)
    for asked, message in (
        (Machines(processes=4), "--processes 4 was asked for, but a launcher has started 2 processes on this machine"),
        (Machines(machines=4), "--machines 4 was asked for, but a launcher has started 2 machines"),
    ):
        with pytest.raises(TrainError, match=message):
            check_started(asked, world)


def test_a_command_is_printed_for_each_machine_and_nothing_is_run(launch, tmp_path):
    result = launch("--processes", "8", *TWO, "lora.rank=8", "--print-command")
    assert result.exit_code == 0, result.stderr
    lines = result.stdout.splitlines()
    assert len(lines) == 2
    for rank, line in enumerate(lines):
        words = shlex.split(line)
        assert words[:3] == ["cd", str(Path.cwd()), "&&"]
        assert {f"--machine_rank={rank}", "--num_machines=2", "--num_processes=16"} < set(words)
        assert words[words.index("--module") + 1 :][:2] == ["mft_train", "launch"]
        assert words[-4:] == ["--processes", "8", "--machines", "2"]
        assert "lora.rank=8" in words
    assert launch("--processes", "8", *TWO, "--machine-rank", "1", "--print-command").stdout != result.stdout
    assert launch("--print-command").stdout.split()[4:6] == ["-m", "mft_train"]
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_a_printed_command_of_accelerate_is_what_a_shell_runs(launch, tmp_path):
    line = launch("--processes", "2", "output=some run", "--print-command").stdout
    folder = tmp_path / "elsewhere"
    folder.mkdir()
    line = line.replace(shlex.quote(str(Path.cwd())), str(folder), 1)
    done = subprocess.run(["sh", "-c", line], capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout == f"{Path('some run') / 'final'}\n"
    assert (folder / "some run" / "final" / "adapter_model.safetensors").is_file()


def starters(config):
    """What each launcher is told for two processes, and the variables of each process that it would start."""
    command = ["launch", str(config)]
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", "-m", "mft_train"]
    slurm = {"SLURM_STEP_NUM_TASKS": "2", "SLURM_STEP_TASKS_PER_NODE": "2", "SLURM_JOB_ID": str(os.getpid())}
    tasks = [slurm | {"SLURM_PROCID": str(rank), "SLURM_LOCALID": str(rank)} for rank in range(2)]
    return {
        "torchrun": ([*torchrun, *command], [{}]),
        "srun": ([sys.executable, "-m", "mft_train", *command], tasks),
    }


@pytest.mark.slow
@pytest.mark.parametrize("launcher", ["torchrun", "srun"])
def test_the_same_command_line_runs_under_other_launchers(write_run, tmp_path, launcher):
    config = write_run(max_steps=2, global_batch_size=4, trackers=[])
    command, tasks = starters(config)[launcher]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    started = [subprocess.Popen(command, env=os.environ | task, **pipes) for task in tasks]
    told = [process.communicate(timeout=300) for process in started]
    assert [process.returncode for process in started] == [0] * len(tasks), told
    assert "".join(stdout for stdout, _ in told).splitlines()[-1] == str(tmp_path / "run" / "final")
    assert sorted(path.name for path in (tmp_path / "run" / "checkpoints").glob("*/state/random-*")) == [
        "random-0000.pt",
        "random-0001.pt",
    ]


def test_gloo_is_told_the_interface_between_machines_and_never_the_loopback():
    world = World(rank=1, world_size=2, local_rank=0, local_world_size=1)
    environment = {"MASTER_ADDR": "127.0.0.1"}
    announce_interface(world, environment)
    assert environment == {"MASTER_ADDR": "127.0.0.1"}
    assert interface_towards("no such host") is None
    environment["GLOO_SOCKET_IFNAME"] = "ib0"
    announce_interface(world, environment)
    assert environment["GLOO_SOCKET_IFNAME"] == "ib0"


def test_a_port_in_use_is_one_line(launch, monkeypatch):
    for name in (LAUNCHER, *SHUTDOWN, "TORCH_CPP_LOG_LEVEL"):  # what a process sets that starts others
        monkeypatch.setenv(name, "1")
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        result = launch("--machines", "2", "--machine-rank", "0", "--main-address", address)
    assert result.exit_code == 1
    assert result.stderr.splitlines()[-1].startswith(f"Error: the port of --main-address {address} is in use")


@pytest.mark.parametrize(
    ("machine_rank", "message"),
    [(0, "fewer than 2 machines have come to 127.0.0.1:29513"), (1, "machine 0 does not answer at 127.0.0.1:29513")],
)
def test_machines_that_do_not_come_are_one_line(machine_rank, message):
    import torch.distributed

    with pytest.raises(RuntimeError) as alone:
        torch.distributed.TCPStore("127.0.0.1", 29_513, 2, machine_rank == 0, timedelta(seconds=1))
    error = unjoined(alone.value, Machines(1, 2, machine_rank, "127.0.0.1:29513"))
    assert error.message.startswith(message)
    assert "\n" not in error.message
