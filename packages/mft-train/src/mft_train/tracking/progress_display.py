"""What a run shows on stderr as it goes: a live view on a terminal, a line per event elsewhere."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.console import Console, RenderableType
    from rich.table import Table

# A step can take minutes: the speed is that of the last steps within this time.
SPEED_WINDOW_SECONDS = 600.0
MOST_NUMBERS = 3  # of an evaluation, in a line
LINES_BESIDE_TASKS = 6  # progress, status, heads, what is left out, and room for the prompt


class PlainLines:
    """One line per event, for log files and pipes."""

    def __init__(self, console: Console, num_steps: int) -> None:
        self.console = console
        self.num_steps = num_steps

    def show(self, event: str, values: dict[str, Any]) -> None:
        """Prints the line of an event."""
        self.console.print(describe(event, values, self.num_steps), highlight=False, soft_wrap=True, markup=False)

    def close(self) -> None:
        """Nothing is left to do: every line is out."""


class LiveView:
    """Progress, time left and the losses and weights of all tasks, redrawn in place; other events as lines above it."""

    def __init__(self, console: Console, num_steps: int, global_step: int) -> None:
        from rich.live import Live
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

        self.lines = PlainLines(console, num_steps)
        self.console = console
        self.progress = Progress(
            TextColumn("step"),
            MofNCompleteColumn(),
            BarColumn(bar_width=None),
            TimeRemainingColumn(),
            TextColumn("left"),
            console=console,
            expand=True,
            speed_estimate_period=SPEED_WINDOW_SECONDS,
        )
        self.bar = self.progress.add_task("", total=num_steps, completed=global_step)
        self.status = "before the first step"
        # Replaced as wholes, never changed: rich draws from a thread of its own.
        self.losses: dict[str, float] = {}
        self.validation_losses: dict[str, float] = {}
        self.weights: dict[str, float] = {}
        self.live = Live(get_renderable=self.view, console=console, vertical_overflow="crop")
        self.live.start()

    def show(self, event: str, values: dict[str, Any]) -> None:
        """Takes up the numbers of an event; prints the line of one that is not a step."""
        if event == "train":
            self.losses = self.losses | values["task_losses"]
            self.weights = values["task_weights"]
            self.status = "  ".join(step_parts(values))
            self.progress.update(self.bar, completed=values["global_step"])
            return
        if event == "validation":
            self.validation_losses = values["task_losses"]
        self.lines.show(event, values)

    def close(self) -> None:
        """Stops drawing; the last view stays on the screen."""
        self.live.stop()

    def view(self) -> RenderableType:
        """Everything that is drawn."""
        from rich.console import Group
        from rich.text import Text

        return Group(self.progress, Text(self.status), *([self.task_table()] if self.weights else []))

    def task_table(self) -> Table:
        """A row per task, as many as the screen has room for."""
        from rich.table import Table

        table = Table(box=None, padding=(0, 2, 0, 0), header_style="dim")
        table.add_column("task", no_wrap=True, overflow="ellipsis")
        for name in ("loss", "validation", "weight"):
            table.add_column(name, justify="right", no_wrap=True, min_width=6)
        room = max(1, self.console.height - LINES_BESIDE_TASKS)
        tasks = list(dict.fromkeys([*self.weights, *self.validation_losses]))
        for task in tasks[:room]:
            numbers = (column.get(task) for column in (self.losses, self.validation_losses, self.weights))
            table.add_row(task, *("-" if number is None else f"{number:.4f}" for number in numbers))
        if len(tasks) > room:
            table.add_row(f"and {len(tasks) - room} more")
        return table


def open_display(console: Console, num_steps: int, global_step: int) -> PlainLines | LiveView:
    """The display for this console."""
    return LiveView(console, num_steps, global_step) if console.is_terminal else PlainLines(console, num_steps)


def step_parts(values: dict[str, Any]) -> list[str]:
    """The numbers of a train event that are not those of a task, as text."""
    return [
        f"loss {values['loss']:.4f}",
        f"lr {values['learning_rate']:.2e}",
        f"{values['tokens_per_second']:,.0f} tokens/s",
        f"{values['peak_memory_bytes'] / 2**30:.2f} GiB",
    ]


def describe(event: str, values: dict[str, Any], num_steps: int) -> str:
    """An event as one line of text."""
    place = f"step {values.get('global_step', 0)}/{num_steps}"
    if event in ("train", "validation"):
        tasks = "  ".join(f"{task} {loss:.4f}" for task, loss in values["task_losses"].items())
        if event == "validation":
            wavers = f"  perplexity {values['perplexity']:.4g}" if values["perplexity"] is not None else ""
            return f"{place}  validation loss {values['loss']:.4f}{wavers}  ({tasks})"
        loss, *rest = step_parts(values)
        return "  ".join([place, loss, f"({tasks})", *rest])
    if event == "evaluation":
        numbers = list(values.get("numbers", {}).items())
        shown = [f"{name} {number:.4g}" for name, number in numbers[:MOST_NUMBERS]]
        told = values.get("error") or "  ".join([*shown, *["..."] * (len(numbers) > MOST_NUMBERS)])
        return f"{place}  evaluation of {values['checkpoint']}  {told}"
    rest = "  ".join(f"{name} {value}" for name, value in values.items() if name != "global_step")
    return f"{place}  {event}  {rest}".rstrip()
