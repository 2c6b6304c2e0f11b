"""Runs killed with SIGKILL at random moments and resumed: the same events and weights, and nothing left behind."""

import contextlib
import json
import os
import random
import resource
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest
import yaml
from click.testing import CliRunner

from mft_train.cli import main
from mft_train.rows.shared_memory import SEGMENT_DIR, SEGMENT_NAME
from mft_train.running.run_lock import sole_run

NUM_KILLS = 10
SETTINGS = {
    "max_steps": 48,
    "global_batch_size": 4,
    "learning_rate": 0.01,
    "lora": {"dropout": 0.1},
    "loss": {"balancer": "coba", "balancer_interval": 1, "coba": {"warmup_updates": 1, "history_length": 3}},
    "validation_interval": 6,
    "checkpoint_interval": 3,
    "keep_last": 2,
}
MEASURED = {"tokens_per_second", "peak_memory_bytes"}


# Imports everything once, then starts a command line of mft-train in a fork of its own session for each line of input.
STARTER = """
    import json, os, sys, traceback
    import peft, streaming, torch, torch.utils.tensorboard, transformers, mft_train.running.train
    from mft_train.cli import main

    for line in sys.stdin:
        request = json.loads(line)
        child = os.fork()
        if child == 0:
            os.setsid()
            log = os.open(request["log"], os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
            os.dup2(log, 1), os.dup2(log, 2), os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
            main(request["arguments"], prog_name="mft-train")
        print(child, flush=True)
        print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
"""


@pytest.fixture
def environment(tmp_path):
    """A temporary folder of the test's own, where streaming's lock files are counted."""
    (tmp_path / "temporary").mkdir()
    return os.environ | {"TMPDIR": str(tmp_path / "temporary"), "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}


@pytest.fixture
def config(tmp_path, tiny_model, tiny_dataset):
    path = tmp_path / "run.yaml"
    path.write_text(
        yaml.safe_dump(SETTINGS | {"model": str(tiny_model), "dataset": str(tiny_dataset), "output": "given later"})
    )
    return path


class Starter:
    """Starts runs of the command in processes of their own, without the imports of each."""

    def __init__(self, environment, log):
        command = [sys.executable, "-c", textwrap.dedent(STARTER)]
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL}
        self.process = subprocess.Popen(command, text=True, env=environment, **pipes)
        self.log = log

    def start(self, *arguments):
        """The process id of a new run, which leads a process group."""
        request = {"arguments": ["launch", *map(str, arguments)], "log": str(self.log)}
        self.process.stdin.write(json.dumps(request) + "\n")
        self.process.stdin.flush()
        return int(self.process.stdout.readline())

    def wait(self):
        """The exit code of the run."""
        return int(self.process.stdout.readline())


@pytest.fixture
def starter(environment, tmp_path):
    starter = Starter(environment, tmp_path / "log")
    with starter.process:
        yield starter
        starter.process.stdin.close()


@pytest.fixture
def server(start_server, environment, tmp_path):
    """Starts runs of several processes, whose ranks are forks too."""
    return start_server("commands", tmp_path / "log", environment)


def events(run_dir, kind):
    lines = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in line.items() if k not in MEASURED} for line in lines if line["event"] == kind]


def weights(run_dir):
    return {path.name: path.read_bytes() for path in (run_dir / "final").iterdir()}


def last_step(run_dir):
    """The last step in metrics.jsonl as it is now, torn lines and all; -1 without one."""
    with contextlib.suppress(FileNotFoundError):
        for line in reversed((run_dir / "metrics.jsonl").read_bytes().splitlines()):
            with contextlib.suppress(json.JSONDecodeError):
                return json.loads(line)["global_step"]
    return -1


def wait_until(condition, pid):
    """Waits for a condition; false if the process ended before."""
    while not condition():
        if not Path(f"/proc/{pid}").exists():
            return False
        time.sleep(0.001)
    return True


def segments_of(dataset):
    """The shared-memory segments of streaming datasets that read `dataset`, as pairs of path and inode."""
    found = set()
    for path in SEGMENT_DIR.glob("*_locals"):
        with contextlib.suppress(FileNotFoundError):
            if str(dataset).encode() in path.read_bytes():
                prefix = SEGMENT_NAME.fullmatch(path.name)[1]
                found |= {(each, each.stat().st_ino) for each in SEGMENT_DIR.glob(f"{prefix}_*")}
    return found


def still_there(segments):
    """Those of the segments that exist; a name that another job has taken since is not one."""
    return [path for path, inode in segments if path.exists() and path.stat().st_ino == inode]


def stale_files(directory):
    """What runs have left in their temporary folder, without lock files of a number that another job has now."""
    in_use = {path.name.partition("_")[0] for path in SEGMENT_DIR.glob("*_locals")}
    return sorted(path for path in directory.iterdir() if path.name.partition("_")[0] not in in_use)


def unfinished(run_dir):
    return sorted(path.name for path in run_dir.rglob(".*"))


@pytest.mark.slow
def test_a_run_killed_ten_times_ends_as_one_that_was_not(starter, config, tmp_path, tiny_dataset):
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    before = segments_of(tiny_dataset)  # of this process itself, which other tests have trained in
    pid = starter.start(config, f"output={whole}")
    assert wait_until(lambda: last_step(whole) >= 1, pid)
    began = time.monotonic()
    assert starter.wait() == 0, starter.log.read_text()
    step_seconds = (time.monotonic() - began) / SETTINGS["max_steps"]

    generator = random.Random(0)
    in_checkpoint, leftovers = 0, set()
    # The first before any checkpoint; none so late that the run could end first.
    moments = [1, *sorted(generator.randrange(SETTINGS["max_steps"] - 9) for _ in range(NUM_KILLS - 1))]
    for kill, step in enumerate(moments):
        pid = starter.start(config, f"output={killed}", *["--resume"] * killed.exists())
        assert wait_until(lambda: last_step(killed) >= step, pid), starter.log.read_text()  # noqa: B023
        if kill % 2:
            assert wait_until(lambda: unfinished(killed), pid)
        time.sleep(generator.uniform(0, step_seconds) * (kill % 4 < 3))
        os.killpg(pid, signal.SIGKILL)
        assert starter.wait() == -signal.SIGKILL
        in_checkpoint += any(name.startswith(".step-") for name in unfinished(killed))
        leftovers |= segments_of(tiny_dataset) - before
    assert in_checkpoint
    assert leftovers

    starter.start(config, f"output={killed}", "--resume")
    assert starter.wait() == 0, starter.log.read_text()
    for kind in ("train", "validation", "end"):
        assert events(killed, kind) == events(whole, kind)
    assert weights(killed) == weights(whole)
    assert {path.name for path in killed.iterdir()} == {path.name for path in whole.iterdir()}
    kept = [sorted(path.name for path in (run / "checkpoints").iterdir()) for run in (killed, whole)]
    assert kept[0] == kept[1]
    assert unfinished(killed) == []
    assert still_there(leftovers) == []
    assert segments_of(tiny_dataset) <= before
    assert stale_files(tmp_path / "temporary") == []


def job(pid):
    """The process ids of a launcher and all that descends from it."""
    parents = {}
    for path in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):
            parents[int(path.name)] = parent_of(path.name)
    found = [pid]
    for each in found:
        found += [child for child, parent in parents.items() if parent == each]
    return found


def parent_of(pid):
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])


def kill_launcher(launcher):
    """Kills the launcher's process group; the ranks have groups of their own and must end by themselves."""
    ranks = job(launcher)[1:]
    os.killpg(launcher, signal.SIGKILL)
    deadline = time.monotonic() + 120
    while any(Path(f"/proc/{rank}").exists() for rank in ranks):
        assert time.monotonic() < deadline, "the ranks go on without their launcher"
        time.sleep(0.01)


def kill_job(launcher):
    for pid in job(launcher):
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


@pytest.mark.slow
def test_two_processes_survive_the_kill_of_their_launcher_and_of_all(server, config, tmp_path, tiny_dataset):
    two, one = tmp_path / "two", tmp_path / "one"
    before = segments_of(tiny_dataset)
    settings = ["validation_interval=0", "schedule=constant", "lora={}", "loss={}", "learning_rate=0.001"]
    command = [config, f"output={two}", "--processes", "2", *settings]
    leftovers = set()
    for kill, flags in ((kill_launcher, ["max_steps=3000"]), (kill_job, ["max_steps=3000", "--resume"])):
        started = last_step(two)
        launcher = server.start(*command, *flags)
        assert wait_until(lambda: last_step(two) > started + 5, launcher), server.log.read_text()  # noqa: B023
        kill(launcher)
        assert server.wait() == -signal.SIGKILL
        if kill is kill_launcher:
            (stop,) = events(two, "interrupt")
            assert stop["signal"] == "SIGTERM"
            assert (two / "checkpoints" / f"step-{stop['global_step']:08d}").is_dir()
        leftovers |= segments_of(tiny_dataset) - before
    assert leftovers

    until = f"max_steps={last_step(two) + 3}"
    server.start(*command, until, "--resume")
    assert server.wait() == 0, server.log.read_text()
    assert segments_of(tiny_dataset) <= before
    stale = stale_files(tmp_path / "temporary")
    result = CliRunner().invoke(main, ["launch", str(config), f"output={one}", until, *settings])
    assert result.exit_code == 0, result.stderr
    for left, right in zip(events(one, "train"), events(two, "train"), strict=True):
        assert right["loss"] == pytest.approx(left["loss"], rel=1e-5)  # float32 sums in another order
        assert right["supervised_tokens"] == left["supervised_tokens"]
    assert unfinished(two) == []
    assert still_there(leftovers) == []
    # The two launchers that were killed had a folder for logs each.
    assert [path.name[:10] for path in stale] == ["mft-train-"] * 2
    assert not [file for path in stale for file in path.rglob("*") if file.is_file()]


@pytest.mark.slow
def test_a_rank_that_is_killed_ends_the_run_with_one_line_each_and_no_shared_memory(
    server, config, tmp_path, tiny_dataset
):
    run_dir = tmp_path / "run"
    before = segments_of(tiny_dataset)
    launcher = server.start(config, f"output={run_dir}", "max_steps=3000", "--processes", "2")
    assert wait_until(lambda: last_step(run_dir) > 5, launcher), server.log.read_text()
    _, second = sorted(pid for pid in job(launcher) if parent_of(pid) == launcher)  # they are started in order
    os.kill(second, signal.SIGKILL)
    assert server.wait() == 1
    told = server.log.read_text()
    assert "Traceback" not in told
    errors = [line for line in told.splitlines() if line.startswith("Error: ")]
    assert errors[-1].startswith("Error: rank 1 was killed, if by the system for want of memory, set in this order")
    assert errors[:-1] in ([], ["Error: another rank has ended"])
    assert segments_of(tiny_dataset) <= before
    assert stale_files(tmp_path / "temporary") == []


def test_a_run_directory_takes_one_run_at_a_time(config, tmp_path):
    run_dir = tmp_path / "run"
    run_dir.mkdir()
    with sole_run(run_dir):
        result = CliRunner().invoke(main, ["launch", str(config), f"output={run_dir}"])
    assert result.exit_code == 1
    assert f'another run is writing to output "{run_dir}"' in result.stderr
    assert list(run_dir.iterdir()) == []
    with sole_run(run_dir):
        pass


def test_a_run_killed_while_it_began_or_was_being_deleted_can_be_started_again(config, tmp_path):
    run_dir = tmp_path / "run"
    run_dir.mkdir()
    (run_dir / ".config.yaml.partial").write_text("model:")
    arguments = ["launch", str(config), f"output={run_dir}", "max_steps=1"]
    assert CliRunner().invoke(main, arguments).exit_code == 0
    assert unfinished(run_dir) == []
    (run_dir / "metrics.jsonl").unlink()
    assert CliRunner().invoke(main, [*arguments, "--overwrite"]).exit_code == 0


def test_a_disk_that_is_full_ends_in_one_line_and_a_resume_goes_on(config, tmp_path):
    run_dir = tmp_path / "run"
    arguments = ["launch", str(config), f"output={run_dir}", "max_steps=4", "trackers=[]", "checkpoint_interval=2"]
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    # No file may grow larger, which fails as a full disk does; Python ignores the signal that comes with it.
    resource.setrlimit(resource.RLIMIT_FSIZE, (12_000, limits[1]))
    try:
        result = CliRunner().invoke(main, arguments)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert result.exit_code == 1
    (error,) = [line for line in result.stderr.splitlines() if line.startswith("Error: ")]
    assert "cannot be written: " in error
    assert str(run_dir) in error
    assert unfinished(run_dir) == []
    result = CliRunner().invoke(main, [*arguments, "--resume"])
    assert result.exit_code == 0, result.stderr
    assert [line["global_step"] for line in events(run_dir, "validation")] == [0, 4]
