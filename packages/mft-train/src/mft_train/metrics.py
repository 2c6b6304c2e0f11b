"""What a run tells: metrics.jsonl, TensorBoard, and a progress line on stderr; on rank 0 only."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any, Self

import orjson

if TYPE_CHECKING:
    from pathlib import Path


class MetricsWriter:
    """Appends one JSON object per event, mirrors numbers to TensorBoard and shows progress.

    A writer that is not active does nothing, so that callers need not ask for their rank. A run that continues after
    `global_step` steps loses the events of later steps: they are about to happen again.
    """

    def __init__(self, run_dir: Path, global_step: int, num_steps: int, *, is_active: bool) -> None:
        self.is_active = is_active
        self.num_steps = num_steps
        if is_active:
            from rich.console import Console
            from torch.utils.tensorboard import SummaryWriter

            path = run_dir / "metrics.jsonl"
            if path.exists():
                keep_events(path, global_step)
            self.file = path.open("ab")
            self.board = SummaryWriter(str(run_dir / "tensorboard"), purge_step=global_step + 1)
            self.console = Console(file=sys.stderr)
            self.progress = self.start_progress() if self.console.is_terminal else None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self.is_active:
            if self.progress:
                self.progress.stop()
            self.board.close()
            self.file.close()

    def start_progress(self) -> Any:
        """A rich progress bar of optimizer steps."""
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

        progress = Progress(
            TextColumn("training"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeRemainingColumn(),
            TextColumn("{task.fields[status]}"),
            console=self.console,
        )
        progress.add_task("training", total=self.num_steps, status="")
        progress.start()
        return progress

    def write(self, event: str, **values: Any) -> None:
        """Appends one event to metrics.jsonl and shows it; numbers go to TensorBoard under the event's name."""
        if not self.is_active:
            return
        self.file.write(orjson.dumps({"event": event, **values}) + b"\n")
        self.file.flush()
        step = values.get("global_step", 0)
        for name, value in values.items():
            if isinstance(value, dict):
                for task, number in value.items():
                    self.board.add_scalar(f"{event}/{name}/{task}", number, step)
            elif isinstance(value, int | float) and name != "global_step":
                self.board.add_scalar(f"{event}/{name}", value, step)
        self.show(event, values)

    def show(self, event: str, values: dict[str, Any]) -> None:
        """One line per event; on a terminal, train events move the progress bar instead."""
        line = describe(event, values, self.num_steps)
        if self.progress and event == "train":
            status = f"loss {values['loss']:.4f}  {values['tokens_per_second']:,.0f} tokens/s"
            self.progress.update(self.progress.task_ids[0], completed=values["global_step"], status=status)
        else:
            self.console.print(line, highlight=False, soft_wrap=True, markup=False)


def keep_events(path: Path, global_step: int) -> None:
    """Rewrites metrics.jsonl with the events up to `global_step`; a line cut off by a kill goes too."""
    kept = []
    for line in path.read_bytes().splitlines(keepends=True):
        try:
            event = orjson.loads(line)
        except orjson.JSONDecodeError:
            continue
        if event["global_step"] <= global_step:
            kept.append(line)
    staging = path.with_name(f".{path.name}.partial")
    staging.write_bytes(b"".join(kept))
    staging.replace(path)


def describe(event: str, values: dict[str, Any], num_steps: int) -> str:
    """An event as one line of text."""
    place = f"step {values.get('global_step', 0)}/{num_steps}"
    if event == "train":
        tasks = "  ".join(f"{task} {loss:.4f}" for task, loss in values["task_losses"].items())
        rate = f"{values['tokens_per_second']:,.0f} tokens/s"
        return f"{place}  loss {values['loss']:.4f}  ({tasks})  lr {values['learning_rate']:.2e}  {rate}"
    if event == "validation":
        tasks = "  ".join(f"{task} {loss:.4f}" for task, loss in values["task_losses"].items())
        return f"{place}  validation loss {values['loss']:.4f}  ({tasks})"
    rest = "  ".join(f"{name} {value}" for name, value in values.items() if name != "global_step")
    return f"{place}  {event}  {rest}".rstrip()
