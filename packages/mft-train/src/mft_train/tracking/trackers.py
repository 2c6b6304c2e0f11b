"""Where a run's numbers go besides metrics.jsonl: TensorBoard, Weights & Biases, MLflow; on rank 0 only."""

from __future__ import annotations

import importlib.util
import os
import re
import sys
import time
from collections import deque
from typing import TYPE_CHECKING, Any

import orjson

from mft_train.config.config_file import flatten
from mft_train.errors import TrainError, first_line

if TYPE_CHECKING:
    from pathlib import Path
    from types import TracebackType

    from accelerate.tracking import MLflowTracker, WandBTracker

    from mft_train.config.config import RunConfig

FORMAT_VERSION = "1"
HOSTED = ("wandb", "mlflow")
RETRY_SECONDS = 300.0
# MLflow waits for its server in the training loop: by default up to a quarter of an hour for one event.
MLFLOW_PATIENCE = {"MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1", "MLFLOW_HTTP_REQUEST_TIMEOUT": "10"}


class TensorBoard:
    """Event files in the run directory; the events of steps that a resume repeats are purged."""

    def __init__(self, run_dir: Path, global_step: int) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self.board = SummaryWriter(str(run_dir / "tensorboard"), purge_step=global_step + 1)

    def write(self, numbers: dict[str, float], global_step: int) -> None:
        """Adds the numbers of one event."""
        for name, number in numbers.items():
            self.board.add_scalar(name, number, global_step)

    def close(self, *_: object) -> None:
        """Flushes and closes the event file."""
        self.board.close()


class HostedRun:
    """A run at Weights & Biases or MLflow. What cannot be sent waits and is sent with a later event."""

    def __init__(self, name: str, tracker: WandBTracker | MLflowTracker) -> None:
        self.name = name
        self.tracker = tracker
        self.waiting: deque[tuple[dict[str, float], int]] = deque()
        self.retry_at = 0.0

    def write(self, numbers: dict[str, float], global_step: int) -> None:
        """Sends the numbers of one event, and those that wait; a failure is told once, and tried again later."""
        self.waiting.append((numbers, global_step))
        if time.monotonic() >= self.retry_at:
            self.send()

    def send(self) -> None:
        """Sends what waits, oldest first."""
        try:
            while self.waiting:
                self.log(*self.waiting[0])
                self.waiting.popleft()
        except Exception as error:
            if not self.retry_at:
                tell(f"tracker {self.name} fails, the run goes on and tries again: {first_line(error)}")
            self.retry_at = time.monotonic() + RETRY_SECONDS
        else:
            self.retry_at = 0.0

    def log(self, numbers: dict[str, float], global_step: int) -> None:
        """Hands one event to the library."""
        if self.name == "wandb":
            # W&B drops values of a step below its last one; the step as a value of its own may go back on a resume.
            self.tracker.log({**numbers, "global_step": global_step})
        else:
            self.tracker.log({mlflow_name(name): number for name, number in numbers.items()}, step=global_step)

    def close(
        self, error_type: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Sends what waits and ends the run there, as failed if there is an error."""
        self.send()
        if self.waiting:
            tell(f"tracker {self.name} lacks {len(self.waiting)} events that could not be sent")
        try:
            self.tracker.tracker.__exit__(error_type, error, trace)
        except Exception as failure:
            tell(f"tracker {self.name} could not end its run: {first_line(failure)}")


def check_trackers(config: RunConfig) -> None:
    """Raises TrainError if the package of a tracker is missing."""
    for name in config.trackers:
        if name in HOSTED and importlib.util.find_spec(name) is None:
            raise TrainError(
                f"tracker {name} is not installed",
                fix=f"install it with `pip install 'mft-train[{name}]'`, or take it out of trackers",
            )


def open_trackers(config: RunConfig, run_dir: Path, global_step: int) -> list[TensorBoard | HostedRun]:
    """The trackers of a run that goes on after `global_step` steps; raises TrainError if one cannot be started."""
    path = run_dir / "trackers.json"
    saved = read_run_ids(path)
    opened: list[TensorBoard | HostedRun] = []
    for name in dict.fromkeys(config.trackers):
        if name == "tensorboard":
            opened.append(TensorBoard(run_dir, global_step))
            continue
        try:
            hosted = start(name, config, run_dir, saved.get(name, {}))
        except Exception as error:
            for tracker in opened:
                tracker.close(type(error), error, error.__traceback__)
            raise TrainError(
                f"tracker {name} cannot be started: {first_line(error)}",
                where=str(run_dir),
                fix="mend that, or take it out of trackers",
            ) from error
        saved[name] = {"project": config.tracker_project, "run_id": run_id(hosted)}
        write_run_ids(saved, path)
        opened.append(hosted)
    return opened


def start(name: str, config: RunConfig, run_dir: Path, saved: dict[str, str]) -> HostedRun:
    """Starts a run there, or goes on with the saved one of the same project, and sends the config."""
    from accelerate.tracking import MLflowTracker, WandBTracker

    earlier = saved.get("run_id") if saved.get("project") == config.tracker_project else None
    run_name = config.tracker_run_name or run_dir.resolve().name
    settings = config.model_dump()
    if name == "wandb":
        # The console is left alone: W&B would record every frame of the live view.
        options = {"dir": str(run_dir), "settings": {"console": "off"}}
        tracker = WandBTracker(config.tracker_project, name=run_name, id=earlier, resume="allow", **options)
        tracker.start()
        tracker.tracker.define_metric("*", step_metric="global_step")
        tracker.store_init_configuration(settings)
        return HostedRun(name, tracker)
    for variable, value in MLFLOW_PATIENCE.items():
        os.environ.setdefault(variable, value)
    tracker = MLflowTracker(config.tracker_project, run_id=earlier, run_name=run_name)
    tracker.start()
    if earlier is None:  # MLflow's parameters never change
        tracker.store_init_configuration(dict(flatten(settings)))
    return HostedRun(name, tracker)


def run_id(hosted: HostedRun) -> str:
    """The id under which a later start finds the run again."""
    run = hosted.tracker.tracker
    return run.id if hosted.name == "wandb" else run.info.run_id


def read_run_ids(path: Path) -> dict[str, dict[str, str]]:
    """Project and run id by tracker, as the last start left them; empty without a file. Raises TrainError."""
    if not path.exists():
        return {}
    try:
        document = orjson.loads(path.read_bytes())
        if document.pop("format_version") == FORMAT_VERSION:
            return document
    except (orjson.JSONDecodeError, KeyError, AttributeError, TypeError) as error:
        raise TrainError("not a list of tracker runs", where=str(path), fix="delete it to begin new runs") from error
    raise TrainError("format_version is unknown", where=str(path), fix="delete it to begin new runs")


def write_run_ids(ids: dict[str, dict[str, str]], path: Path) -> None:
    """Writes project and run id by tracker, whole or not at all."""
    staging = path.with_name(f".{path.name}.partial")
    document = {"format_version": FORMAT_VERSION, **ids}
    staging.write_bytes(orjson.dumps(document, option=orjson.OPT_INDENT_2))
    staging.replace(path)


def numbers_of(event: str, values: dict[str, Any]) -> dict[str, float]:
    """The numbers of an event but its step, under names such as `train/task_losses/sql`."""
    numbers = {}
    for name, value in values.items():
        pairs = value.items() if isinstance(value, dict) else [("", value)]
        for task, number in pairs:
            if isinstance(number, int | float) and name != "global_step":
                numbers[f"{event}/{name}/{task}".rstrip("/")] = number
    return numbers


def mlflow_name(name: str) -> str:
    """A name with the characters that MLflow refuses as their code points: `c++` becomes `c_2b__2b_`."""
    return re.sub(r"[^\w.\- /]", lambda match: f"_{ord(match[0]):x}_", name)


def tell(text: str) -> None:
    """Prints a line on stderr, above the live view if there is one: that stands in for `sys.stderr` while it draws."""
    print(text, file=sys.stderr)
