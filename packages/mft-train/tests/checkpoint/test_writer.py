"""The writer: what holds now is written while the run goes on, and a failure is told once."""

import contextlib
import threading
from types import SimpleNamespace

import pytest

from mft_train.checkpoint.writer import CheckpointWriter
from mft_train.errors import TrainError


def rank(index=0, ranks=1):
    return SimpleNamespace(
        process_index=index, num_processes=ranks, is_main_process=index == 0, wait_for_everyone=lambda: None
    )


def nothing(_):
    pass


def test_a_directory_is_written_while_the_caller_goes_on(tmp_path):
    may_write, after = threading.Event(), []

    def slow_part(staging):
        assert may_write.wait(30)
        (staging / "part").write_text("1")

    with CheckpointWriter(rank(), is_background=True) as writer:
        writer.write(tmp_path / "a", nothing, slow_part, nothing, lambda: after.append("a"))
        writer.collect()
        assert not (tmp_path / "a").exists()
        assert after == []
        may_write.set()
        writer.wait()
        assert (tmp_path / "a" / "part").read_text() == "1"
        assert after == ["a"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a"]


def test_a_part_that_cannot_be_written_is_told_by_the_next_step(tmp_path):
    def full(_):
        raise OSError(28, "No space left on device")

    writer = CheckpointWriter(rank(), is_background=True)
    writer.write(tmp_path / "a", nothing, full, nothing, lambda: pytest.fail("it is not there"))
    writer.current.thread.join()
    with pytest.raises(TrainError, match="No space left on device"):
        writer.collect()
    writer.collect()
    assert not list(tmp_path.iterdir())


def test_rank_0_waits_for_the_parts_of_others_and_hears_of_a_failure(tmp_path):
    for mark, error in (("written", None), ("failed", "rank 1 could not write its part")):
        target = tmp_path / mark
        writer = CheckpointWriter(rank(0, 2), is_background=True)
        writer.write(target, nothing, nothing, lambda staging: (staging / "index").touch())
        assert not target.exists()
        (writer.current.staging / f".1.{mark}").touch()
        if error:
            with pytest.raises(TrainError, match=error):
                writer.wait()
        else:
            writer.wait()
            assert [path.name for path in target.iterdir()] == ["index"]


def test_after_an_error_a_part_that_will_not_come_is_not_waited_for(tmp_path):
    with contextlib.suppress(ZeroDivisionError), CheckpointWriter(rank(0, 2), is_background=True) as writer:
        writer.write(tmp_path / "a", nothing, nothing, nothing)
        raise ZeroDivisionError
    assert not list(tmp_path.iterdir())


def test_the_last_directory_is_whole_when_a_run_ends_well(tmp_path):
    with CheckpointWriter(rank(), is_background=True) as writer:
        writer.write(tmp_path / "a", nothing, nothing, nothing)
    assert (tmp_path / "a").is_dir()
