"""Removal of streaming's stale shared memory, with real segments, processes and lock files."""

import fcntl
import multiprocessing
import os
import random
import shutil
import subprocess
import sys
import tempfile
import textwrap
import time
from multiprocessing import resource_tracker, shared_memory

import pytest
from streaming import StreamingDataset

from mft_train.rows import shared_memory as streaming_memory
from mft_train.rows.shared_memory import LOCK_KINDS, SEGMENT_DIR, SEGMENT_KINDS, one_at_a_time, remove_stale


@pytest.fixture
def locks(tmp_path, monkeypatch):
    """A temporary folder of this test alone: lock files of other jobs stay out of it."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    return tmp_path


@pytest.fixture
def prefix():
    """A number of a dataset that no streaming job reaches by counting; its segments go at the end."""
    number = random.SystemRandom().randrange(600_000, 900_000)
    yield number
    for path in SEGMENT_DIR.glob(f"{number}_*"):
        path.unlink()


def create(name):
    """A segment that this process maps."""
    segment = shared_memory.SharedMemory(name, create=True, size=64)
    resource_tracker.unregister(f"/{name}", "shared_memory")
    return segment


def abandon(name):
    """A segment that is left in /dev/shm without a process that maps it, as after a kill."""
    create(name).close()
    return SEGMENT_DIR / name


HOLDER = """
    import os, sys
    from multiprocessing import resource_tracker, shared_memory
    segment = shared_memory.SharedMemory(sys.argv[1])
    resource_tracker.unregister("/" + sys.argv[1], "shared_memory")
    if sys.argv[2] == "mapped":
        os.close(segment._fd)
    else:
        segment._buf.release()
        segment._mmap.close()
    print("ready", flush=True)
    sys.stdin.read()
"""


@pytest.mark.parametrize("way", ["mapped", "open"])
def test_a_segment_that_a_live_process_uses_keeps_its_dataset_until_that_process_ends(prefix, locks, way):
    stale = [abandon(f"{prefix + 1}_{kind}") for kind in SEGMENT_KINDS]
    alive = [SEGMENT_DIR / f"{prefix}_{kind}" for kind in SEGMENT_KINDS]
    own = [create(path.name) for path in alive]  # until the child has it: other runs here may sweep at any moment
    lock = locks / f"{prefix}_barrier_filelock"
    lock.touch()
    command = [sys.executable, "-c", textwrap.dedent(HOLDER), f"{prefix}_locals", way]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as child:
        assert child.stdout.readline() == "ready\n"
        for segment in own:
            segment.close()
        remove_stale()
        assert not any(path.exists() for path in stale)
        assert all(path.exists() for path in alive)
        assert lock.exists()
        child.kill()
    remove_stale()
    assert not any(path.exists() for path in alive)
    assert not lock.exists()


def test_only_streaming_s_own_names_go(prefix, locks):
    others = [abandon(f"{prefix}_{name}") for name in ("weights", "localsx")] + [abandon(f"psm_{prefix}")]
    files = [locks / name for name in (f"{prefix}_barrier_filelock.txt", "notes", f"{prefix}_locals")]
    for path in files:
        path.write_text("keep me")
    (locks / f"{prefix}_cache_filelock").symlink_to(files[0])
    try:
        remove_stale()
        assert all(path.exists() for path in [*others, *files])
        assert (locks / f"{prefix}_cache_filelock").is_symlink()
    finally:
        for path in others:
            path.unlink()


def test_a_lock_that_is_held_stays(prefix, locks):
    paths = [locks / f"{prefix}_{kind}" for kind in LOCK_KINDS]
    for path in paths:
        path.touch()
    with paths[0].open() as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        remove_stale()
        assert [path.exists() for path in paths] == [True, False]
    remove_stale()
    assert not paths[0].exists()


@pytest.mark.skipif(os.getuid() != 0, reason="only root can make files of another user")
def test_another_user_s_segments_and_locks_stay(prefix, locks):
    paths = [abandon(f"{prefix}_locals"), locks / f"{prefix + 1}_barrier_filelock"]
    paths[1].touch()
    for path in paths:
        os.chown(path, 65534, 65534)
    remove_stale()
    assert all(path.exists() for path in paths)


def test_a_process_that_nobody_can_look_into_still_counts(prefix, locks):
    """The judge sees no other process, and the holder forbids a look into it."""
    unshare = ["unshare", "--pid", "--fork", "--mount-proc"]
    if not shutil.which("unshare") or subprocess.run([*unshare, "true"], check=False).returncode:
        pytest.skip("this machine gives no process numbers of one's own")
    path = SEGMENT_DIR / f"{prefix}_locals"
    own = create(path.name)
    judge = [*unshare, sys.executable, "-c", "from mft_train.rows.shared_memory import remove_stale; remove_stale()"]
    # 4 is PR_SET_DUMPABLE: what programs that guard secrets do.
    guarded = "import ctypes\nctypes.CDLL(None).prctl(4, 0)" + textwrap.dedent(HOLDER)
    command = [sys.executable, "-c", guarded, path.name, "mapped"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as child:
        assert child.stdout.readline() == "ready\n"
        own.close()
        subprocess.run(judge, check=True)
        assert path.exists()
        child.kill()
    subprocess.run(judge, check=True)
    assert not path.exists()


def test_the_names_are_those_of_streaming():
    from streaming.base import constant

    assert list(SEGMENT_KINDS) == constant.SHM_TO_CLEAN
    assert list(LOCK_KINDS) == [constant.BARRIER_FILELOCK, constant.CACHE_FILELOCK]


def test_datasets_that_are_opened_at_the_same_moment_all_open(tiny_dataset):
    """Each process starts at a barrier; without the lock most rounds end with one that finds its number taken."""
    context = multiprocessing.get_context("fork")
    num_processes, num_rounds = 4, 5
    barrier, outcomes = context.Barrier(num_processes), context.SimpleQueue()

    def open_datasets():
        for _ in range(num_rounds):
            barrier.wait(60)
            try:
                with one_at_a_time():
                    dataset = StreamingDataset(local=str(next((tiny_dataset / "train").iterdir())), batch_size=1)
                outcomes.put(dataset.size)
            except Exception as error:
                outcomes.put(repr(error))
            barrier.wait(60)
            del dataset

    processes = [context.Process(target=open_datasets) for _ in range(num_processes)]
    for process in processes:
        process.start()
    found = {outcomes.get() for _ in range(num_processes * num_rounds)}
    for process in processes:
        process.join()
    assert len(found) == 1
    assert isinstance(found.pop(), int)


def test_one_that_hangs_at_its_start_holds_up_others_for_so_long_only(monkeypatch):
    monkeypatch.setattr(streaming_memory, "PATIENCE", 0.3)
    with one_at_a_time():
        start = time.monotonic()
        with one_at_a_time():
            assert 0.3 <= time.monotonic() - start < 20
