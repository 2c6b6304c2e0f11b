"""A run on two machines: the numbers of one, the end of one seen by the other, resumes, and each row once."""

import itertools
import json
import subprocess
import sys
import textwrap
import time

import pytest
import yaml

from mft_train.rows.dataset_dir import open_dataset
from mft_train.rows.row_stream import RowStream, StreamPosition

MEASURED = {"tokens_per_second", "peak_memory_bytes", "num_steps"}  # the last is of a run that is made shorter
PORT = 29_511
PIPES = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}


def launch(machine, path, rank, *arguments):
    """A run of one process on a machine, one of two of them."""
    options = ["--machines", "2", "--machine-rank", rank, "--main-address", f"10.87.0.1:{PORT}"]
    return subprocess.Popen(
        machine.command([sys.executable, "-m", "mft_train", "launch", path, *options, *arguments]), **PIPES
    )


def events(run_dir, kind):
    lines = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in line.items() if k not in MEASURED} for line in lines if line["event"] == kind]


def wait_for_step(run_dir, step, started):
    """Until that step of a run is in its events; what ends before is an error."""
    text = f'"event":"train","global_step":{step},'
    while not (run_dir / "metrics.jsonl").is_file() or text not in (run_dir / "metrics.jsonl").read_text():
        assert [process.poll() for process in started] == [None, None], [process.communicate() for process in started]
        time.sleep(0.02)


@pytest.mark.slow
def test_two_machines_train_as_one_and_each_sees_the_other_end(machines, tmp_path, tiny_model, tiny_dataset):
    settings = {"max_steps": 400, "global_batch_size": 4, "learning_rate": 0.001, "validation_interval": 100}
    settings |= {"checkpoint_interval": 5, "trackers": [], "schedule": "constant"}
    values = {"model": str(tiny_model), "dataset": str(tiny_dataset), "output": str(tmp_path / "run")}
    path, run_dir, whole = tmp_path / "run.yaml", tmp_path / "run", tmp_path / "whole"
    path.write_text(yaml.safe_dump(settings | values))
    first_step, resumed_at, arguments = 1, [], []
    for killed in (1, 0):
        started = [launch(machine, path, rank, *arguments) for rank, machine in enumerate(machines)]
        wait_for_step(run_dir, first_step + 6, started)
        begun = time.monotonic()
        machines[killed].kill()
        _, told = started[1 - killed].communicate(timeout=120)
        assert time.monotonic() - begun < 60
        assert started[killed].wait(timeout=10) == -9
        assert started[1 - killed].returncode == 1
        (line,) = [line for line in told.splitlines() if "rror" in line]
        assert line.startswith(f"Error: the connection to other machines is lost: this is machine {1 - killed} of 2")
        latest = max(int(name.name.removeprefix("step-")) for name in (run_dir / "checkpoints").glob("step-*"))
        resumed_at.append(f"step-{latest:08d}")
        first_step, arguments = latest + 1, ["--resume"]
    end = f"max_steps={first_step + 10}"
    started = [launch(machine, path, rank, "--resume", end) for rank, machine in enumerate(machines)]
    told = [process.communicate(timeout=300) for process in started]
    assert [process.returncode for process in started] == [0, 0], told
    assert [stdout for stdout, _ in told] == [f"{run_dir / 'final'}\n"] * 2
    assert [line["checkpoint"] for line in events(run_dir, "resume")] == resumed_at

    command = [sys.executable, "-m", "mft_train", "launch", path, f"output={whole}", end, "--processes", "2"]
    done = subprocess.run([str(word) for word in command], capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
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
    machines, tmp_path, tiny_dataset, monkeypatch
):
    """One process, two machines with one each, with two each, one process: the steps of one from end to end."""
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "1")
    script = tmp_path / "rank.py"
    script.write_text(textwrap.dedent(RANK))

    def on_two_machines(position, num_steps, processes):
        command = [sys.executable, "-m", "torch.distributed.run", f"--nproc-per-node={processes}", "--nnodes=2"]
        command += ["--master-addr=10.87.0.1", f"--master-port={PORT}"]
        arguments = [script, tiny_dataset, json.dumps([position.epoch, position.rows]), num_steps]
        started = [
            subprocess.Popen(machine.command([*command, f"--node-rank={rank}", *arguments]), **PIPES)
            for rank, machine in enumerate(machines)
        ]
        told = [process.communicate(timeout=200) for process in started]
        assert [process.returncode for process in started] == [0, 0], told
        taken, position = map(json.loads, told[0][0].splitlines()[-2:])
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
