"""Who works on the chunks of a build: this process, several here, or a Ray cluster; results come in order."""

from __future__ import annotations

import importlib
import logging
import os
import pickle
import tempfile
from collections import deque
from concurrent.futures import Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mft_data.errors import DataError

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Iterable, Iterator

# A job is (function, arguments...); the function gets the worker's own state first.
Job = tuple[Any, ...]
# Jobs handed out ahead of the one whose result is awaited, for each worker.
JOBS_AHEAD = 4
# The tokenizer makes and drops some small pieces of memory for every token. With more of them kept at hand than glibc
# does by itself, it takes a fifth less time. Read at the start of a process, by glibc alone.
ALLOCATOR = ("GLIBC_TUNABLES", "glibc.malloc.tcache_count=1000:glibc.malloc.tcache_max=256")


class Here:
    """Runs jobs one after the other in this process."""

    def run(self, state: Any, jobs: Iterable[Job]) -> Generator[Any]:
        """The results of the jobs in order; every job gets `state` first."""
        for function, *arguments in jobs:
            yield function(state, *arguments)


class Processes:
    """Runs jobs in processes of this machine, which start up while the caller goes on."""

    def __init__(self, num_workers: int, scratch: Path) -> None:
        import multiprocessing

        self.num_workers, self.scratch = num_workers, scratch
        context = multiprocessing.get_context("spawn")
        self.pool = ProcessPoolExecutor(num_workers, context, initializer=start_worker, initargs=(os.getpid(),))
        with allocator_for_tokens():
            for _ in range(num_workers):
                self.pool.submit(os.getpid)

    def run(self, state: Any, jobs: Iterable[Job]) -> Generator[Any]:
        """The results of the jobs in order, each of which gets its worker's copy of `state` first.

        Raises DataError if a worker is killed.
        """
        with tempfile.NamedTemporaryFile(dir=self.scratch) as handle:
            pickle.dump(state, handle)
            handle.flush()
            try:
                started = (self.pool.submit(work_on, handle.name, job) for job in jobs)
                yield from in_order(started, Future.result, cancel_all, self.num_workers)
            except BrokenProcessPool as error:
                fix = "give fewer --workers if memory ran out"
                raise DataError("a worker process ended by itself or was killed", fix=fix) from error

    def close(self) -> None:
        """Ends the workers after the jobs at hand."""
        self.pool.shutdown(wait=True, cancel_futures=True)


class Ray:
    """Runs jobs in actors of the Ray cluster in RAY_ADDRESS, or of one started here."""

    def __init__(self, num_workers: int, scratch: Path) -> None:  # noqa: ARG002
        try:
            import ray
        except ImportError as error:
            raise DataError("--engine ray needs Ray", fix="pip install mft-data[ray]") from error
        self.num_workers = num_workers
        self.is_own = not ray.is_initialized()
        if self.is_own:
            ray.init(address=os.environ.get("RAY_ADDRESS"), log_to_driver=False, logging_level=logging.ERROR)

    def run(self, state: Any, jobs: Iterable[Job]) -> Generator[Any]:
        """The results of the jobs in order, each of which gets its worker's copy of `state`."""
        import ray

        @ray.remote(num_cpus=1)
        class Worker:
            def __init__(self) -> None:
                os.environ["TOKENIZERS_PARALLELISM"] = "false"

            def work_on(self, job: Job) -> Any:
                function, *arguments = job
                return function(state, *arguments)

        workers: list[Any] = [Worker.remote() for _ in range(self.num_workers)]

        def end_all(_: list[Any]) -> None:
            for worker in workers:
                ray.kill(worker)

        try:
            started = (workers[number % len(workers)].work_on.remote(job) for number, job in enumerate(jobs))
            yield from in_order(started, ray.get, end_all, self.num_workers)
        except ray.exceptions.RayTaskError as error:
            raise error.cause from error

    def close(self) -> None:
        """Ends a cluster that was started here."""
        import ray

        if self.is_own:
            ray.shutdown()


Engine = Here | Processes | Ray
ENGINES: dict[str, Callable[[int, Path], Processes | Ray]] = {"processes": Processes, "ray": Ray}


@contextmanager
def started_engine(name: str, num_workers: int, scratch: Path) -> Iterator[Engine]:
    """The engine of this name with so many workers; one worker on this machine is this process itself.

    What goes to its workers lies in the folder `scratch` for a while.
    """
    if name == "processes" and num_workers <= 1:
        yield Here()
        return
    engine = ENGINES[name](num_workers, scratch)
    try:
        yield engine
    finally:
        engine.close()


def in_order(
    started: Iterable[Any], result_of: Callable[[Any], Any], give_up: Callable[[list[Any]], None], num_workers: int
) -> Iterator[Any]:
    """The results of jobs in the order that they are started in, which is a few jobs ahead.

    If the caller wants no more, or a job fails, `give_up` gets the jobs still out and returns when none is running.
    """
    waiting: deque[Any] = deque()
    try:
        for job in started:
            waiting.append(job)
            if len(waiting) >= num_workers * JOBS_AHEAD:
                yield result_of(waiting.popleft())
        while waiting:
            yield result_of(waiting.popleft())
    finally:
        give_up(list(waiting))


def cancel_all(futures: list[Future[Any]]) -> None:
    """Cancels the jobs that have not begun and waits for the others."""
    for future in futures:
        future.cancel()
    wait(futures)


@contextmanager
def allocator_for_tokens() -> Iterator[None]:
    """Processes started inside are set up for what the tokenizer asks of memory, unless the user has set them up."""
    name, value = ALLOCATOR
    if name in os.environ:
        yield
        return
    os.environ[name] = value
    try:
        yield
    finally:
        del os.environ[name]


# The state of this worker process, by the file that it was read from.
_states: dict[str, Any] = {}


def start_worker(parent: int) -> None:
    """Makes this process a worker that never outlives its parent, with a core of its own."""
    end_with_parent(parent)
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    for name in ("mft_data.commands.build", "tokenizers"):  # loaded before the first job needs them
        importlib.import_module(name)


def end_with_parent(parent: int) -> None:
    """Has Linux kill this process when its parent dies."""
    import ctypes
    import signal
    import sys

    if sys.platform == "linux":
        pr_set_pdeathsig = 1
        ctypes.CDLL(None).prctl(pr_set_pdeathsig, signal.SIGKILL)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the parent, which ends the pool
    if os.getppid() != parent:
        os._exit(1)


def work_on(state_path: str, job: Job) -> Any:
    """The result of one job, in a worker process."""
    if state_path not in _states:
        _states.clear()
        _states[state_path] = pickle.loads(Path(state_path).read_bytes())  # noqa: S301 - written by our parent
    function, *arguments = job
    return function(_states[state_path], *arguments)
