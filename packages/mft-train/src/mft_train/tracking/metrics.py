"""What a run tells: metrics.jsonl, its trackers, and its display on stderr; on rank 0 only."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any, Self

import orjson

from mft_train.tracking.progress_display import open_display
from mft_train.tracking.trackers import numbers_of, open_trackers

if TYPE_CHECKING:
    from pathlib import Path
    from types import TracebackType

    from mft_train.config.config import RunConfig


# Events of a run that was over, which it is no more when it goes on.
ENDS = ("early_stop", "end")


class MetricsWriter:
    """Appends one JSON object per event, passes its numbers to the trackers and shows it.

    A writer that is not active does nothing, so that callers need not ask for their rank. A run that continues after
    `global_step` steps loses the events of later steps: they are about to happen again. Raises TrainError if a tracker
    cannot be started.
    """

    def __init__(self, config: RunConfig, run_dir: Path, global_step: int, num_steps: int, *, is_active: bool) -> None:
        self.is_active = is_active
        if is_active:
            from rich.console import Console

            self.trackers = open_trackers(config, run_dir, global_step)
            path = run_dir / "metrics.jsonl"
            if path.exists():
                keep_events(path, global_step)
            self.file = path.open("ab")
            self.display = open_display(Console(file=sys.stderr), num_steps, global_step)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, error_type: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.is_active:
            self.display.close()
            self.file.close()
            for tracker in self.trackers:
                tracker.close(error_type, error, trace)

    def write(self, event: str, **values: Any) -> None:
        """Appends one event to metrics.jsonl and shows it; its numbers go to the trackers."""
        if not self.is_active:
            return
        self.file.write(orjson.dumps({"event": event, **values}) + b"\n")
        self.file.flush()
        if numbers := numbers_of(event, values):
            for tracker in self.trackers:
                tracker.write(numbers, values["global_step"])
        self.display.show(event, values)


def told_events(path: Path, kind: str) -> list[dict[str, Any]]:
    """The events of one kind that metrics.jsonl has."""
    told = [orjson.loads(line) for line in path.read_bytes().splitlines()] if path.is_file() else []
    return [line for line in told if line["event"] == kind]


def is_told(path: Path, kind: str, global_step: int) -> bool:
    """Whether metrics.jsonl has an event of this kind for a step."""
    return any(line["global_step"] == global_step for line in told_events(path, kind))


def keep_events(path: Path, global_step: int) -> None:
    """Rewrites metrics.jsonl with the events up to `global_step`; the run's end and a line cut off by a kill go too.

    With `global_step` 0 the run begins anew, and its first validation is about to happen again.
    """
    kept = []
    for line in path.read_bytes().splitlines(keepends=True):
        try:
            event = orjson.loads(line)
        except orjson.JSONDecodeError:
            continue
        if 0 < global_step >= event["global_step"] and event["event"] not in ENDS:
            kept.append(line)
    staging = path.with_name(f".{path.name}.partial")
    staging.write_bytes(b"".join(kept))
    staging.replace(path)
