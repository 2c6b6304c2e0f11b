"""Servers of judgements side by side: requests go out as workers fall free, outcomes come back as they are found."""

import contextlib
import fcntl
import json
import os
import selectors
import signal
import subprocess
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any, TypeVar

from mft_eval.judging.deadlines import START_SECONDS
from mft_eval.judging.sandboxes import ends_within
from mft_eval.sandbox.bubblewrap import launch
from mft_eval.sandbox.bundle import NURSERY_MODULES, SERVER_MODULES, make_bundle
from mft_eval.sandbox.protocol import BUILD_SECONDS
from mft_eval.sandbox.walls import NAMESPACES

Key = TypeVar("Key")
_CLEAN_ENVIRONMENT = {"PYTHONHASHSEED": "0", "LANG": "C.UTF-8", "PATH": "/usr/bin:/bin"}
_SLACK_SECONDS = 10
_PIPE_BYTES = 2**20


@dataclass(slots=True)
class _Worker:
    """A server process and what it is busy with."""

    process: Any  # a Popen with both pipes
    key: Any = None
    deadline: float = 0.0
    received: bytes = b""

    def ask(self, key: Any, request: dict[str, Any]) -> None:
        num_cases = max(1, len(request.get("cases", ())))
        patience = START_SECONDS + BUILD_SECONDS + request["timeout_seconds"] * num_cases + _SLACK_SECONDS
        self.key, self.deadline, self.received = key, time.monotonic() + patience, b""
        try:
            self.process.stdin.write(json.dumps(request).encode() + b"\n")
            self.process.stdin.flush()
        except BrokenPipeError:
            # The end of its answers tells that it is gone.
            return


class JudgePool:
    """`num_workers` servers; a context manager that ends them and everything they started.

    `walls` are those around each program: namespaces, Landlock or none.
    """

    def __init__(self, bwrap_path: str, num_workers: int, walls: str = NAMESPACES) -> None:
        self._launch = launch(bwrap_path, walls)
        self.walls = walls
        self._num_workers = num_workers
        self._workers: list[_Worker] = []

    def __enter__(self) -> "JudgePool":
        # All of them now: they get ready while whoever asks does.
        while len(self._workers) < self._num_workers:
            self._workers.append(self._start())
        for worker in self._workers:
            self._hand_code(worker)
        return self

    def __exit__(self, *_: object) -> None:
        for worker in self._workers:
            _let_go(worker.process)
        for worker in self._workers:
            _end(worker.process)
        self._workers.clear()

    def judge_all(
        self, requests: Iterable[tuple[Key, dict[str, Any]]], *, num_workers: int | None = None
    ) -> Iterator[tuple[Key, dict[str, Any]]]:
        """Each request's key with the outcome, in the order in which they are found."""
        pending = iter(requests)
        with selectors.DefaultSelector() as selector:
            for index in range(min(num_workers or self._num_workers, self._num_workers)):
                if (item := next(pending, None)) is None:
                    break
                self._workers[index].ask(*item)
                selector.register(self._workers[index].process.stdout, selectors.EVENT_READ, index)
            while selector.get_map():
                for index in self._ready(selector):
                    worker = self._workers[index]
                    outcome = self._outcome(worker)
                    if outcome is None:
                        continue
                    selector.unregister(worker.process.stdout)
                    if worker.process.poll() is not None or outcome.pop("is_lost", False):
                        _end(worker.process)
                        self._workers[index] = self._start()
                        self._hand_code(self._workers[index])
                    key, following = worker.key, next(pending, None)
                    if following is not None:
                        self._workers[index].ask(*following)
                        selector.register(self._workers[index].process.stdout, selectors.EVENT_READ, index)
                    yield key, outcome

    def _start(self) -> _Worker:
        pipe = subprocess.PIPE
        process: Any = subprocess.Popen(
            self._launch.server, stdin=pipe, stdout=pipe, stderr=subprocess.DEVNULL, env=_CLEAN_ENVIRONMENT, cwd="/"
        )
        return _Worker(process)

    def _hand_code(self, worker: _Worker) -> None:
        """Gives a started server its code and its nursery's, which this process has read for all of them."""
        server, nursery = make_bundle(SERVER_MODULES), make_bundle(NURSERY_MODULES)
        settings = self._launch.settings | {"num_bundle_bytes": len(nursery)}
        # Room for all of it, where the system gives it, so that nobody waits for a server that is still starting.
        with contextlib.suppress(OSError):
            fcntl.fcntl(worker.process.stdin, fcntl.F_SETPIPE_SZ, _PIPE_BYTES)
        # The end of its answers tells that it is gone.
        with contextlib.suppress(BrokenPipeError):
            worker.process.stdin.write(server + json.dumps(settings).encode() + b"\n" + nursery)
            worker.process.stdin.flush()

    def _ready(self, selector: selectors.BaseSelector) -> list[int]:
        """Workers that have written something, or whose time is far over."""
        deadlines = {key.data: self._workers[key.data].deadline for key in selector.get_map().values()}
        events = selector.select(max(0.0, min(deadlines.values()) - time.monotonic()))
        late = [index for index, deadline in deadlines.items() if deadline <= time.monotonic()]
        return [key.data for key, _ in events] or late

    def _outcome(self, worker: _Worker) -> dict[str, Any] | None:
        """The outcome if the worker's answer is complete."""
        if worker.deadline <= time.monotonic():
            return {"verdict": "harness-error", "detail": "the judge did not end", "is_lost": True}
        part = os.read(worker.process.stdout.fileno(), 2**20)
        if not part:
            return {"verdict": "harness-error", "detail": "the judge's server ended by itself", "is_lost": True}
        worker.received += part
        return json.loads(worker.received) if part.endswith(b"\n") else None


def _let_go(process: Any) -> None:
    """Closes a server's pipes: without its stdin it ends by itself, with its sandboxes."""
    for pipe in (process.stdin, process.stdout):
        try:
            pipe.close()
        except BrokenPipeError:
            continue


def _end(process: Any) -> None:
    """Ends a server and its sandboxes."""
    _let_go(process)
    if not ends_within(process, 2):
        process.send_signal(signal.SIGKILL)
        process.wait()
