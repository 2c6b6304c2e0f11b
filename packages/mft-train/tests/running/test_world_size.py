"""A run that goes on with another number of processes: real gloo ranks, every row of every epoch exactly once."""

import itertools
import json
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
import yaml
from click.testing import CliRunner

from mft_train.cli import main
from mft_train.rows.dataset_dir import open_dataset
from mft_train.rows.row_stream import RowStream, StreamPosition

EPOCHS = 2
# Every rank takes its steps from one position to the end of the epochs, or a number of steps, and prints its rows.
RANK = """
    import json, os, sys
    import torch.distributed as dist
    from mft_train.rows.dataset_dir import open_dataset
    from mft_train.rows.row_stream import RowStream, StreamPosition

    dataset, batch, cases = sys.argv[1], int(sys.argv[2]), json.loads(sys.argv[3])
    dist.init_process_group("gloo")
    rank, world_size = dist.get_rank(), dist.get_world_size()
    answers = []
    for position, num_steps, epochs in cases:
        stream = RowStream(open_dataset(dataset), {}, batch, 0, rank, world_size)
        position, steps, taken = StreamPosition(*position), stream.steps(StreamPosition(*position)), []
        while (len(taken) < num_steps if num_steps else position.epoch < epochs):
            step = next(steps)
            position = step.next_position
            taken.append([[row.task_id, number, bool(row.loss_mask.any())]
                          for row, number in zip(step.rows, step.row_numbers)])
        answers.append([taken, [position.epoch, position.rows]])
    gathered = [None] * world_size
    dist.all_gather_object(gathered, answers)
    if rank == 0:
        print(json.dumps(gathered))
"""


def two_ranks(dataset, batch, cases):
    """What two ranks answer to each case: for each step the rows of both that count, and the position at the end."""
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node=2", "--standalone"]
    script = Path(dataset).with_name("rank.py")
    script.write_text(textwrap.dedent(RANK))
    command += [str(script), str(dataset), str(batch), json.dumps(cases)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=200, check=False)
    assert done.returncode == 0, done.stderr
    ranks = json.loads(done.stdout.splitlines()[-1])
    answers = []
    for index in range(len(cases)):
        (one, position), (other, same_position) = (ranks[rank][index] for rank in range(2))
        assert position == same_position
        assert [len(rows) for rows in one] == [len(rows) for rows in other], "ranks take the same number of rows"
        steps = [counted(left + right) for left, right in zip(one, other, strict=True)]
        answers.append((steps, StreamPosition(*position)))
    return answers


def counted(rows):
    return sorted((task_id, number) for task_id, number, counts in rows if counts)


def one_rank(dataset, batch, position, *, num_steps=None, epochs=EPOCHS):
    """The rows of each step of a single process, and the position at the end."""
    steps = RowStream(open_dataset(str(dataset)), {}, batch, 0, 0, 1).steps(position)
    taken = []
    while len(taken) < num_steps if num_steps else position.epoch < epochs:
        step = next(steps)
        position = step.next_position
        pairs = zip(step.rows, step.row_numbers, strict=True)
        taken.append(counted((row.task_id, number, bool(row.loss_mask.any())) for row, number in pairs))
    return taken, position


@pytest.mark.slow
def test_every_row_of_every_epoch_is_seen_once_when_the_number_of_processes_changes(tiny_dataset, monkeypatch):
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "1")
    every_row = [(0, number) for number in range(23)] + [(1, number) for number in range(6)]
    whole, _ = one_rank(tiny_dataset, 4, StreamPosition())
    for steps in (whole[:8], whole[8:]):
        assert sorted(itertools.chain(*steps)) == every_row

    # In the middle of the first epoch, in the last and uneven step of an epoch, in the second, and at odd positions.
    changes = [(1, 4), (7, 4), (11, 4), (3, 3), (6, 1)]
    begun = [one_rank(tiny_dataset, batch, StreamPosition(), num_steps=num) for num, batch in changes]
    cases = [((position.epoch, position.rows), None, EPOCHS) for _, position in begun]
    alone = [((0, 0), num, None) for num in (1, 5, 8, 11)]
    answers = two_ranks(tiny_dataset, 4, cases + alone)

    for (first, position), (second, end), (_, batch) in zip(begun, answers, changes, strict=False):
        assert sorted(itertools.chain(*first, *second)) == sorted(EPOCHS * every_row), position
        assert end == StreamPosition(EPOCHS, 0)
        if batch == 4:
            assert first + second == whole
    for first, position in answers[len(cases) :]:
        second, _ = one_rank(tiny_dataset, 4, position)
        assert first + second == whole


@pytest.mark.slow
def test_the_losses_go_on_when_one_process_becomes_two_and_two_become_one(tmp_path, tiny_model, tiny_dataset):
    settings = {"max_steps": 18, "global_batch_size": 4, "learning_rate": 0.01, "checkpoint_interval": 6}
    values = {"model": str(tiny_model), "dataset": str(tiny_dataset), "output": str(tmp_path / "whole")}
    path = tmp_path / "run.yaml"
    path.write_text(yaml.safe_dump(settings | values | {"validation_interval": 6}))
    parts = tmp_path / "parts"

    def launch(output, *arguments):
        result = CliRunner().invoke(main, ["launch", str(path), f"output={output}", *arguments])
        assert result.exit_code == 0, result.stderr

    def keep_until(step):
        for checkpoint in (parts / "checkpoints").glob("step-*"):
            if int(checkpoint.name.removeprefix("step-")) > step:
                checkpoint.rename(tmp_path / f"{checkpoint.name}-of-{step}")

    launch(tmp_path / "whole")
    launch(parts)
    keep_until(6)
    command = [
        sys.executable,
        "-m",
        "mft_train",
        "launch",
        str(path),
        f"output={parts}",
        "--resume",
        "--processes",
        "2",
    ]
    done = subprocess.run(command, capture_output=True, text=True, timeout=200, check=False)
    assert done.returncode == 0, done.stderr
    keep_until(12)
    launch(parts, "--resume")

    def events(run_dir, kind):
        lines = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
        return [line for line in lines if line["event"] == kind]

    assert [line["checkpoint"] for line in events(parts, "resume")] == ["step-00000006", "step-00000012"]
    for kind in ("train", "validation"):
        for left, right in zip(events(tmp_path / "whole", kind), events(parts, kind), strict=True):
            assert right["loss"] == pytest.approx(left["loss"], rel=1e-5)
            assert right["task_losses"] == pytest.approx(left["task_losses"], rel=1e-5)
