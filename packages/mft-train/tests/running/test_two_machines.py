"""A run on two machines: the numbers of one, the end of one seen by the other, resumes, and each row once."""

import itertools
import json
import textwrap
import time
from pathlib import Path

import pytest
import yaml

from mft_train.rows.dataset_dir import open_dataset
from mft_train.rows.row_stream import RowStream, StreamPosition

MEASURED = {"tokens_per_second", "peak_memory_bytes", "num_steps"}  # the last is of a run that is made shorter
PORT = 29_511


def launch(server, path, rank, *arguments):
    """The process id of a run of one process on a machine, one of two of them."""
    options = ["--machines", 2, "--machine-rank", rank, "--main-address", f"10.87.0.1:{PORT}"]
    return server.start(path, *options, *arguments)


def is_running(process):
    return Path(f"/proc/{process}").exists()


def end_of(server, process, seconds):
    """The exit code of a run and what it has printed, which may take so long."""
    deadline = time.monotonic() + seconds
    while is_running(process):
        assert time.monotonic() < deadline, server.log.read_text()
        time.sleep(0.02)
    return server.wait(), server.log.read_text()


def events(run_dir, kind):
    lines = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in line.items() if k not in MEASURED} for line in lines if line["event"] == kind]


def wait_for_step(run_dir, step, started, servers):
    """Until that step of a run is in its events; what ends before is an error."""
    text = f'"event":"train","global_step":{step},'
    while not (run_dir / "metrics.jsonl").is_file() or text not in (run_dir / "metrics.jsonl").read_text():
        assert all(map(is_running, started)), [server.log.read_text() for server in servers]
        time.sleep(0.02)


@pytest.mark.slow
def test_two_machines_train_as_one_and_each_sees_the_other_end(
    machines, tmp_path, tiny_model, tiny_dataset, start_server
):
    settings = {"max_steps": 400, "global_batch_size": 4, "learning_rate": 0.001, "validation_interval": 100}
    settings |= {"checkpoint_interval": 5, "trackers": [], "schedule": "constant"}
    values = {"model": str(tiny_model), "dataset": str(tiny_dataset), "output": str(tmp_path / "run")}
    path, run_dir, whole = tmp_path / "run.yaml", tmp_path / "run", tmp_path / "whole"
    path.write_text(yaml.safe_dump(settings | values))
    servers = [
        start_server("commands", tmp_path / f"log-{rank}", None, machine) for rank, machine in enumerate(machines)
    ]
    first_step, resumed_at, arguments = 1, [], []
    for killed in (1, 0):
        left = 1 - killed
        started = [launch(server, path, rank, *arguments) for rank, server in enumerate(servers)]
        wait_for_step(run_dir, first_step + 6, started, servers)
        begun = time.monotonic()
        machines[killed].kill(spared=servers[killed].process.pid)
        code, told = end_of(servers[left], started[left], 120)
        assert time.monotonic() - begun < 60
        assert servers[killed].wait() == -9
        assert code == 1
        (line,) = [line for line in told.splitlines() if "rror" in line]
        assert line.startswith(f"Error: the connection to other machines is lost: this is machine {left} of 2")
        latest = max(int(name.name.removeprefix("step-")) for name in (run_dir / "checkpoints").glob("step-*"))
        resumed_at.append(f"step-{latest:08d}")
        first_step, arguments = latest + 1, ["--resume"]
    end = f"max_steps={first_step + 10}"
    started = [launch(server, path, rank, "--resume", end) for rank, server in enumerate(servers)]
    for server, process in zip(servers, started, strict=True):
        code, told = end_of(server, process, 300)
        assert code == 0, told
        assert told.splitlines()[-1] == str(run_dir / "final")
    assert [line["checkpoint"] for line in events(run_dir, "resume")] == resumed_at

    process = servers[0].start(path, f"output={whole}", end, "--processes", 2)
    code, told = end_of(servers[0], process, 300)
    assert code == 0, told
    for kind in ("train", "validation"):
        assert events(run_dir, kind) == events(whole, kind)
    final = {path.name: path.read_bytes() for path in (whole / "final").glob("*.safetensors")}
    assert {path.name: path.read_bytes() for path in (run_dir / "final").glob("*.safetensors")} == final


# Each rank takes steps of the stream and prints, for its rows that count, task and number within it.
RANK = """
    import json, os, sys
    import torch.distributed as dist
    from mft_train.engine.network_interface import announce_interface
    from mft_train.engine.world import read_world
    from mft_train.rows.dataset_dir import open_dataset
    from mft_train.rows.row_stream import RowStream, StreamPosition

    dataset, position, num_steps = sys.argv[1], StreamPosition(*json.loads(sys.argv[2])), int(sys.argv[3])
    world = read_world(os.environ)
    announce_interface(world, os.environ)
    dist.init_process_group("gloo")
    stream = RowStream(open_dataset(dataset), {}, 4, 0, world.rank, world.world_size, None, world.num_nodes)
    steps, taken = stream.steps(position), []
    for _ in range(num_steps):
        step = next(steps)
        position = step.next_position
        pairs = zip(step.rows, step.row_numbers)
        taken.append([[row.task_id, number] for row, number in pairs if row.loss_mask.any()])
    gathered = [None] * world.world_size
    dist.all_gather_object(gathered, taken)
    if world.is_main:
        print(json.dumps([sorted(sum(rows, [])) for rows in zip(*gathered)]))
        print(json.dumps([position.epoch, position.rows]))
    dist.destroy_process_group()
"""


@pytest.mark.slow
def test_no_row_is_repeated_or_skipped_as_processes_and_machines_come_and_go(
    machines, tmp_path, tiny_dataset, monkeypatch, start_server
):
    """One process, two machines with one each, with two each, one process: the steps of one from end to end."""
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "1")
    script = tmp_path / "rank.py"
    script.write_text(textwrap.dedent(RANK))

    servers = [start_server("ranks", None, machine) for machine in machines]

    def on_two_machines(position, num_steps, processes):
        arguments = [tiny_dataset, json.dumps([position.epoch, position.rows]), num_steps]
        shared = {"WORLD_SIZE": 2 * processes, "LOCAL_WORLD_SIZE": processes, "MASTER_ADDR": "10.87.0.1"}
        printed = [tmp_path / f"printed-{number}-{processes}" for number in range(2)]
        for number, server in enumerate(servers):
            ranks = [{"LOCAL_RANK": local, "RANK": number * processes + local} for local in range(processes)]
            variables = [{name: str(value) for name, value in (shared | rank).items()} for rank in ranks]
            variables = [each | {"MASTER_PORT": str(PORT)} for each in variables]
            server.start(processes, printed[number], arguments, environments=variables, script=str(script))
        codes = [server.answer() for server in servers]
        assert codes == [[0] * processes] * 2, [path.read_text() for path in printed]
        taken, position = map(json.loads, printed[0].read_text().splitlines()[-2:])
        return taken, StreamPosition(*position)

    def alone(position, num_steps):
        steps = RowStream(open_dataset(str(tiny_dataset)), {}, 4, 0, 0, 1).steps(position)
        taken = []
        for step in itertools.islice(steps, num_steps):
            pairs = zip(step.rows, step.row_numbers, strict=True)
            taken.append(sorted([row.task_id, number] for row, number in pairs))
            position = step.next_position
        return taken, position

    whole, _ = alone(StreamPosition(), 16)
    every_row = [[0, number] for number in range(23)] + [[1, number] for number in range(6)]
    for epoch in (whole[:8], whole[8:]):
        assert sorted(itertools.chain(*epoch)) == every_row
    first, position = alone(StreamPosition(), 3)
    second, position = on_two_machines(position, 6, 1)
    third, position = on_two_machines(position, 5, 2)
    last, _ = alone(position, 2)
    assert first + second + third + last == whole
