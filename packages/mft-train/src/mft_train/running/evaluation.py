"""Evaluations of checkpoints by a command of the user's, beside the training: rank 0 runs them, one after the other."""

from __future__ import annotations

import contextlib
import math
import os
import shutil
import subprocess
import sys
import time
from collections import deque
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import click
import orjson

from mft_train.checkpoint.checkpoint import step_dir, step_name
from mft_train.config.config_file import flatten_values
from mft_train.errors import first_line
from mft_train.running import supervise
from mft_train.tracking.metrics import told_events

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from accelerate import Accelerator

    from mft_train.config.config import RunConfig
    from mft_train.running.interrupts import Interrupts
    from mft_train.tracking.metrics import MetricsWriter

POLL_SECONDS = 0.1
STOP_SECONDS = 15.0
MOST_BYTES = 1 << 28  # of JSON
MOST_NUMBERS = 50  # of one event
# By these a program would take itself for a rank of this run.
RANK_VARIABLES = (
    "RANK",
    "WORLD_SIZE",
    "LOCAL_",
    "GROUP_",
    "ROLE_",
    "MASTER_",
    "ACCELERATE_",
    "TORCHELASTIC_",
    "MFT_TRAIN_",
)


@dataclass(frozen=True, slots=True)
class Evaluation:
    """One evaluation that goes on: its process, and the files of what it prints and of what it says."""

    global_step: int
    process: subprocess.Popen[bytes]
    started: float
    printed: Path
    said: Path


@dataclass(slots=True)
class Evaluations:
    """The evaluations of a run. Ranks but the first only wait for what it has found.

    `found` holds, by step, the number that the best is chosen by, None where there is none, until it is counted.
    """

    config: RunConfig
    run_dir: Path
    is_main: bool
    waiting: deque[int] = field(default_factory=deque)
    current: Evaluation | None = None
    found: dict[int, float | None] = field(default_factory=dict)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def resume(self, steps: Iterable[int]) -> None:
        """Takes up the evaluations that a run had not counted: those that are told as they are, others anew."""
        if not self.is_main:
            return
        told = {event["global_step"]: event for event in told_events(self.run_dir / "metrics.jsonl", "evaluation")}
        for step in steps:
            if step in told:
                self.found[step] = self.number(told[step].get("numbers", {}))
            elif step_dir(self.run_dir, step).is_dir():
                self.waiting.append(step)

    def add(self, global_step: int) -> None:
        """Lets the checkpoint of this step, which is there, be evaluated when those before it are."""
        if self.is_main:
            self.waiting.append(global_step)

    def advance(self, metrics: MetricsWriter) -> bool:
        """Takes up what has come to its end and begins what waits; whether nothing is left."""
        if self.current and self.current.process.poll() is not None:
            self.end(self.current, metrics)
            self.current = None
        if self.current is None and self.waiting:
            self.current = self.begin(self.waiting.popleft())
        return self.current is None

    def settle(
        self, accelerator: Accelerator, metrics: MetricsWriter, interrupts: Interrupts
    ) -> tuple[dict[int, float | None], int | None]:
        """Waits until no evaluation is left; what was found by step, or the signal that came first.

        All ranks call this together. They meet again and again meanwhile, so that none waits long for another.
        """
        import torch
        from accelerate.utils import broadcast_object_list

        while True:
            is_busy = self.is_main and not self.advance(metrics)
            flag = torch.tensor([float(is_busy)], device=accelerator.device)
            if not accelerator.reduce(flag, reduction="sum").item():
                break
            if interrupt := interrupts.agreed(accelerator):
                return {}, interrupt
            time.sleep(POLL_SECONDS)
        (found,) = broadcast_object_list([self.found])
        self.found = {}
        return found, None

    def begin(self, global_step: int) -> Evaluation:
        """Starts the command for the checkpoint of a step."""
        folder = self.run_dir / "evaluations"
        folder.mkdir(exist_ok=True)
        printed, said = folder / f".{step_name(global_step)}.json.partial", folder / f"{step_name(global_step)}.log"
        shell = ["bash", "-o", "pipefail", "-c"] if shutil.which("bash") else ["sh", "-c"]
        seconds = str(self.config.evaluation_timeout_seconds)
        command = [sys.executable, "-I", "-S", supervise.__file__, seconds, *shell, str(self.config.evaluation_command)]
        checkpoint = step_dir(self.run_dir, global_step).absolute()
        with printed.open("wb") as stdout, said.open("wb") as stderr:
            process = subprocess.Popen(
                command,
                stdin=subprocess.PIPE,
                stdout=stdout,
                stderr=stderr,
                env=command_environment(os.environ, checkpoint, global_step),
                start_new_session=True,
            )
        return Evaluation(global_step, process, time.monotonic(), printed, said)

    def end(self, done: Evaluation, metrics: MetricsWriter) -> None:
        """Writes the event of an evaluation that has ended, and says why one has failed."""
        close(done)
        values: dict[str, Any] = {"checkpoint": step_name(done.global_step)}
        numbers: dict[str, float] = {}
        try:
            check_exit(done.process.returncode, self.config.evaluation_timeout_seconds)
            numbers = read_numbers(done.printed, self.config.evaluation_metric)
            values["numbers"] = numbers
            done.printed.replace(done.printed.with_name(f"{step_name(done.global_step)}.json"))
        except (ValueError, OSError) as error:
            values["error"] = first_line(error)
            done.printed.unlink(missing_ok=True)
        values["seconds"] = round(time.monotonic() - done.started, 1)
        metrics.write("evaluation", global_step=done.global_step, **values)
        self.found[done.global_step] = self.number(numbers)
        missing = self.config.evaluation_metric if numbers and self.found[done.global_step] is None else None
        problem = values.get("error") or (missing and f'there is no number "{missing}" among {", ".join(numbers)}')
        if problem:
            text = f"the evaluation of {step_name(done.global_step)} failed, the run goes on: {problem} ({done.said})"
            # Not err=True, by which click would write past the live view that stands in for sys.stderr.
            click.echo(text, file=sys.stderr)

    def number(self, numbers: Mapping[str, float]) -> float | None:
        """The number that the best is chosen by."""
        return numbers.get(self.config.evaluation_metric or "")

    def stop(self) -> None:
        """Ends what goes on, without an event: it is made anew by a resume."""
        self.waiting.clear()
        if self.current:
            close(self.current)
            self.current.printed.unlink(missing_ok=True)
            self.current.said.unlink(missing_ok=True)
            self.current = None


def close(evaluation: Evaluation) -> None:
    """Lets go of a process, which ends its command if that goes on."""
    if evaluation.process.stdin:
        with contextlib.suppress(OSError):
            evaluation.process.stdin.close()
    try:
        evaluation.process.wait(STOP_SECONDS)
    except subprocess.TimeoutExpired:
        evaluation.process.kill()
        evaluation.process.wait()


def command_environment(environment: Mapping[str, str], checkpoint: Path, global_step: int) -> dict[str, str]:
    """The environment of the command: that of the run without what makes a process a rank, and the checkpoint."""
    kept = {name: value for name, value in environment.items() if not name.startswith(RANK_VARIABLES)}
    return kept | {"MFT_CHECKPOINT": str(checkpoint), "MFT_STEP": str(global_step)}


def check_exit(code: int, timeout_seconds: float) -> None:
    """Raises ValueError for an evaluation that did not end well."""
    if code == supervise.TIMED_OUT:
        raise ValueError(f"it did not end within evaluation_timeout_seconds ({timeout_seconds:g})")
    if code:
        raise ValueError(f"its command ended with exit code {code}")


def read_numbers(path: Path, wanted: str | None) -> dict[str, float]:
    """The finite numbers of a JSON object by dotted name, the wanted one and the first of them; raises ValueError.

    JSON is all that was printed, or its last line.
    """
    if path.stat().st_size > MOST_BYTES:
        raise ValueError(f"it printed {path.stat().st_size:,} bytes")
    content = path.read_bytes().strip()
    try:
        document = orjson.loads(content)
    except orjson.JSONDecodeError:
        try:
            document = orjson.loads(content.rpartition(b"\n")[2])
        except orjson.JSONDecodeError:
            raise ValueError("it printed no JSON") from None
    if not isinstance(document, dict):
        raise ValueError("its JSON is no object")
    numbers = {
        name: float(value)
        for name, value in flatten_values(document)
        if isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    }
    if not numbers:
        raise ValueError("there is no number in its JSON")
    chosen = {wanted: numbers.pop(wanted)} if wanted in numbers else {}
    return chosen | dict(list(numbers.items())[: MOST_NUMBERS - len(chosen)])
