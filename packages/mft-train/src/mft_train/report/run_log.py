"""Reader of a run's metrics.jsonl: its events as curves and marks, each event checked once."""

from __future__ import annotations

import math
from collections import defaultdict, deque
from dataclasses import dataclass, field
from statistics import median
from typing import TYPE_CHECKING, Any

import orjson

from mft_train.checkpoint.validation_record import TOLERATED_RISE
from mft_train.errors import TrainError
from mft_train.report.curve import Curve

if TYPE_CHECKING:
    from pathlib import Path

NOT_FINISHED = "not finished"
SPEED_STEPS = 50  # that the time left is judged by
LARGEST = 1e100  # no measured number is near it; beyond it sums and differences would overflow
TRAIN_NUMBERS = ("loss", "learning_rate", "grad_norm", "tokens_per_second")


@dataclass(slots=True)
class RunLog:
    """What happened in a run, in the order of the file. Maps are keyed by task name; losses in nats per token."""

    train: dict[str, Curve] = field(default_factory=lambda: {name: Curve() for name in TRAIN_NUMBERS})
    train_losses: dict[str, Curve] = field(default_factory=lambda: defaultdict(Curve))
    task_weights: dict[str, Curve] = field(default_factory=lambda: defaultdict(Curve))
    task_shares: dict[str, Curve] = field(default_factory=lambda: defaultdict(Curve))
    """Of the objective; not in the logs of the first versions."""
    evaluations: dict[str, Curve] = field(default_factory=lambda: defaultdict(Curve))
    """By the name of the number."""
    peak_memory: Curve = field(default_factory=Curve)
    """In GiB."""
    validation: Curve = field(default_factory=Curve)
    validation_losses: dict[str, Curve] = field(default_factory=lambda: defaultdict(Curve))
    checkpoints: list[int] = field(default_factory=list)
    happenings: list[tuple[int, str, str]] = field(default_factory=list)
    """Resumes, interrupts, failed evaluations, early stops and ends: step, kind, details."""
    last_step: int = 0
    num_steps: int = 0
    """Of the whole run; 0 if it is not told."""
    num_logged: int = 0
    """Train events: fewer than steps if not every step was logged."""
    tokens: int = 0
    supervised_tokens: int = 0
    seconds: float = 0.0
    """Time that the logged steps took, from their tokens and tokens per second."""
    last_seconds: deque[float] = field(default_factory=lambda: deque(maxlen=SPEED_STEPS))
    """That of the last of them, one by one."""
    is_cut_off: bool = False
    """Whether the last line was torn, and so left out."""

    @property
    def tasks(self) -> list[str]:
        """The names of all tasks: in the order of the dataset, for a run that has trained."""
        return list(dict.fromkeys([*self.task_weights, *self.train_losses, *self.validation_losses]))

    @property
    def guards(self) -> list[str]:
        """The tasks that are validated and not trained."""
        return [task for task in self.validation_losses if task not in self.task_weights] if self.num_logged else []

    @property
    def risen_guards(self) -> dict[str, float]:
        """The guard tasks whose last loss is more than 2 % above their first, and by which share of it."""
        rises = {}
        for task in self.guards:
            curve = self.validation_losses[task]
            rises[task] = curve.values[-1] / curve.values[0] - 1 if curve.values[0] else 0.0
        return {task: rise for task, rise in rises.items() if rise > TOLERATED_RISE}

    @property
    def seconds_left(self) -> float | None:
        """Time that the steps left will take at the speed of the last ones; None where none is left or known."""
        if self.status != NOT_FINISHED or not self.last_seconds or self.num_steps <= self.last_step:
            return None
        return (self.num_steps - self.last_step) * median(self.last_seconds)

    @property
    def status(self) -> str:
        """How the run stands by its last event other than a checkpoint."""
        if self.happenings and self.happenings[-1][0] == self.last_step:
            _, kind, details = self.happenings[-1]
            if kind == "end":
                early = [earlier for step, name, earlier in self.happenings if (step, name) == (self.last_step, "stop")]
                return f"stopped early: {early[-1]}" if early else "finished"
            if kind == "interrupt":
                return f"interrupted by {details}"
        return NOT_FINISHED


def read_run_log(run_dir: Path) -> RunLog:
    """The events of a run directory; raises TrainError. A last line that a kill cut off is left out."""
    path = run_dir / "metrics.jsonl"
    if not run_dir.is_dir():
        raise TrainError(f'run "{run_dir}" is not a directory', fix="name the output directory of `mft-train launch`")
    try:
        lines = path.read_bytes().split(b"\n")
    except FileNotFoundError as error:
        raise TrainError("there is no metrics.jsonl", where=str(run_dir), fix="is it the output of a run?") from error
    log = RunLog()
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            add_event(log, orjson.loads(line))
        except orjson.JSONDecodeError as error:
            if number < len(lines):
                raise TrainError("not a line of JSON", where=f"{path} line {number}") from error
            log.is_cut_off = True
        except (KeyError, TypeError, AttributeError, ValueError) as error:
            problem = f"lacks the key {error}" if isinstance(error, KeyError) else f"is malformed: {error}"
            raise TrainError(f"the event {problem}", where=f"{path} line {number}") from error
    if not log.num_logged and not log.validation.steps:
        raise TrainError("no step and no validation is logged yet", where=str(path), fix="try again later")
    return log


def add_event(log: RunLog, event: dict[str, Any]) -> None:
    """Adds one event; of kinds unknown here, nothing. Raises KeyError, TypeError, AttributeError or ValueError."""
    kind, step = event["event"], event["global_step"]
    if not isinstance(step, int) or step < 0:
        raise ValueError(f"global_step {step!r} is not a count")
    if kind == "train":
        add_train_event(log, step, event)
    elif kind == "validation":
        add_numbers(log.validation_losses, step, event["task_losses"])
        log.validation.append(step, number(event["loss"]))
    elif kind == "checkpoint":
        log.checkpoints.append(step)
    elif kind == "resume":
        log.happenings.append((step, "resume", str(event["checkpoint"])))
    elif kind == "interrupt":
        log.happenings.append((step, "interrupt", str(event["signal"])))
    elif kind == "early_stop":
        log.happenings.append((step, "stop", stop_details(event)))
    elif kind == "evaluation":
        if "error" in event:
            log.happenings.append((step, "evaluation", str(event["error"])))
        add_numbers(log.evaluations, step, event.get("numbers", {}))
    elif kind == "end":
        log.happenings.append((step, "end", ""))
    else:
        return
    log.last_step = max(log.last_step, step)


def stop_details(event: dict[str, Any]) -> str:
    """Why a run stopped early, in words: by which rule, and what was best."""
    rule = event.get("rule", "mean")  # not in the logs of the first versions
    if rule == "tasks":
        best = ", ".join(f"{task} at step {step}" for task, step in event["best_steps"].items())
        return f"best losses of tasks: {best}"
    name, key = {
        "mean": ("best validation loss", "best_loss"),
        "worst": ("lowest worst loss over its first", "best_ratio"),
    }.get(rule, (f"best {event.get('metric')}", "best_value"))
    return f"{name} {number(event[key]):.4f} at step {event['best_step']}"


def add_train_event(log: RunLog, step: int, event: dict[str, Any]) -> None:
    """Adds the numbers of one logged step."""
    for name, curve in log.train.items():
        curve.append(step, number(event[name]))
    add_numbers(log.train_losses, step, event["task_losses"])
    add_numbers(log.task_weights, step, event["task_weights"])
    add_numbers(log.task_shares, step, event.get("task_shares", {}))
    log.num_steps = max(0, int(event.get("num_steps", 0)))
    if "peak_memory_bytes" in event:  # not in the logs of the first versions
        log.peak_memory.append(step, number(event["peak_memory_bytes"]) / 2**30)
    tokens, rate = event["tokens"], log.train["tokens_per_second"].last
    log.num_logged += 1
    log.tokens += tokens
    log.supervised_tokens += event["supervised_tokens"]
    if rate > 0:
        log.seconds += tokens / rate
        log.last_seconds.append(tokens / rate)


def add_numbers(curves: dict[str, Curve], step: int, numbers: dict[str, float | None]) -> None:
    """Adds one number to the curve of each task named."""
    for task, value in numbers.items():
        curves[task].append(step, number(value))


def number(value: float | None) -> float:
    """A number of an event; NaN for one that was not finite, which JSON has as null. Raises TypeError."""
    if value is None:
        return math.nan
    if isinstance(value, float | int):
        return float(value) if abs(value) < LARGEST else math.nan
    raise TypeError(f"{value!r} is not a number")
