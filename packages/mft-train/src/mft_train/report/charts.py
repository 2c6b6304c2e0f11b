"""The charts of a report: losses of all tasks together and one by one, task weights, and how the optimizer fared."""

from __future__ import annotations

from dataclasses import replace
from html import escape
from typing import TYPE_CHECKING

from mft_train.report.curve import smooth, thin
from mft_train.report.line_chart import Line, Marks, line_chart

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from mft_train.report.curve import Curve
    from mft_train.report.run_log import RunLog

MOST_POINTS = 600  # of one curve
PAGE_POINTS = 45_000  # of all curves, at about 13 bytes a point
WEIGHTS_NOTE = "by task; the weights sum to the number of tasks"
SHARES_NOTE = "smoothed, by task: what the coefficients of its tokens sum to; over a run, what its weight came to"
MOST_EVALUATIONS = 12
MEMORY_NOTE = "GiB, the most that the process of rank 0 has held since its start"
BREAKS = {"interrupt": "interrupted", "resume": "resumed"}
OPTIMIZER_CHARTS = {
    "loss": ("Objective", "the loss that each step minimised, over its global batch", False),
    "learning_rate": ("Learning rate", "used by each step", True),
    "grad_norm": ("Gradient norm", "global L2 norm before clipping", True),
    "tokens_per_second": ("Throughput", "tokens per second, validation and checkpoints not counted", True),
}


def charts_sections(log: RunLog) -> str:
    """Every section of the page that is made of charts."""
    half_life = max(2, log.num_logged // 50)
    breaks = [(step, BREAKS[kind]) for step, kind, _ in log.happenings if kind in BREAKS]
    marks = Marks(log.last_step, log.checkpoints, breaks)
    limit = max(24, min(MOST_POINTS, PAGE_POINTS // (6 * len(log.tasks) + 8)))
    smoothed = {task: smooth(curve, half_life) for task, curve in log.train_losses.items()}
    key = [
        f"A smoothed line is a moving average with a half-life of {half_life} logged values.",
        *(["Ticks on the step axis are checkpoints."] if log.checkpoints else []),
        *(["Vertical lines are resumes and interrupts."] if breaks else []),
    ]
    overview = [
        figure("train", "Training loss", of_tasks(log, smoothed, "smooth"), marks, limit, "smoothed, by task"),
        figure(
            "validation", "Validation loss", of_tasks(log, log.validation_losses, "measured"), marks, limit, "by task"
        ),
    ]
    panels = [
        figure(f"task-{index}", task, task_lines(log, smoothed, index, task), marks, limit)
        for index, task in enumerate(log.tasks)
    ]
    optimizer = [
        figure(f"run-{name}", title, run_lines(name, log.train[name], half_life), marks, limit, note, is_from_zero=zero)
        for name, (title, note, zero) in OPTIMIZER_CHARTS.items()
    ]
    if log.peak_memory.steps:
        lines = [Line("peak memory", log.peak_memory, None, "smooth")]
        optimizer.append(figure("run-memory", "Peak memory", lines, marks, limit, MEMORY_NOTE, is_from_zero=True))
    return "\n".join(
        [
            section("Losses", " ".join(key), "charts", overview),
            section("Task by task", "Faint: every logged step. Each chart has its own scale.", "panels", panels),
            *evaluations(log, marks, limit),
            section("Task weights and shares", "", "charts", [weights(log, marks, limit), *shares(log, marks, limit)]),
            section("Optimization", "", "charts", optimizer),
        ]
    )


def section(title: str, note: str, layout: str, figures: Iterable[str]) -> str:
    """A section of figures."""
    paragraph = f'<p class="note">{escape(note)}</p>' if note else ""
    return f'<section>\n<h2>{title}</h2>\n{paragraph}\n<div class="{layout}">\n{"".join(figures)}</div>\n</section>'


def of_tasks(log: RunLog, curves: dict[str, Curve], style: str) -> list[Line]:
    """A line per task that has a curve, in the task's colour."""
    return [Line(task, curves[task], index, style) for index, task in enumerate(log.tasks) if task in curves]


def task_lines(log: RunLog, smoothed: dict[str, Curve], index: int, task: str) -> list[Line]:
    """What is known of one task's loss; curves that it lacks are left out."""
    lines = []
    if task in log.train_losses:
        lines.append(Line("each step", log.train_losses[task], index, "raw"))
        lines.append(Line("training", smoothed[task], index, "smooth"))
    if task in log.validation_losses:
        lines.append(Line("validation", log.validation_losses[task], None, "measured"))
    return lines


def run_lines(name: str, curve: Curve, half_life: int) -> list[Line]:
    """A number of the whole run: as it is if it is exact, else each value faint under the smoothed line."""
    if name == "learning_rate":
        return [Line("learning rate", curve, None, "smooth")]
    return [Line("each step", curve, None, "raw"), Line("smoothed", smooth(curve, half_life), None, "smooth")]


def weights(log: RunLog, marks: Marks, limit: int) -> str:
    """The chart of task weights; only their values if they never changed."""
    lines = of_tasks(log, log.task_weights, "smooth")
    if lines and all(min(line.curve.values) == max(line.curve.values) for line in lines):
        return frame("Weight in the objective", "the same at every step", legend(lines), "")
    return figure("weights", "Weight in the objective", lines, marks, limit, WEIGHTS_NOTE, is_from_zero=True)


def shares(log: RunLog, marks: Marks, limit: int) -> list[str]:
    """The chart of every task's share of the objective, which says what the weights came to; none without shares."""
    half_life = max(2, log.num_logged // 50)
    lines = of_tasks(log, {task: smooth(curve, half_life) for task, curve in log.task_shares.items()}, "smooth")
    return (
        [figure("shares", "Share of the objective", lines, marks, limit, SHARES_NOTE, is_from_zero=True)]
        if lines
        else []
    )


def evaluations(log: RunLog, marks: Marks, limit: int) -> list[str]:
    """The section of the evaluations' first number, by which the best may be chosen, and of others that change."""
    curves = [(name, curve) for name, curve in log.evaluations.items() if curve.finite]
    shown = curves[:1] + [(name, curve) for name, curve in curves[1:] if len(set(curve.finite_values)) > 1]
    shown = shown[:MOST_EVALUATIONS]
    if not shown:
        return []
    figures = [
        figure(f"evaluation-{index}", name, [Line(name, curve, None, "measured")], marks, limit)
        for index, (name, curve) in enumerate(shown)
    ]
    return [section("Evaluations", "The numbers of the evaluation command, at their checkpoints.", "panels", figures)]


def figure(
    name: str,
    title: str,
    lines: Sequence[Line],
    marks: Marks,
    limit: int,
    note: str = "",
    *,
    is_from_zero: bool = False,
) -> str:
    """A chart with its caption; of lines without a finite value, only the caption."""
    thinned = [replace(line, curve=thin(line.curve, limit)) for line in lines]
    drawn = [line for line in thinned if line.curve.steps]
    if not drawn:
        return frame(title, "nothing was logged", "", "")
    heading = title if name.startswith("task") or not note else f"{title}: {note}"
    chart = line_chart(name, heading, drawn, marks, is_from_zero=is_from_zero)
    return frame(title, note, legend(drawn), chart)


def frame(title: str, note: str, names: str, chart: str) -> str:
    """A figure element around a chart."""
    paragraph = f"<p>{escape(note)}</p>" if note else ""
    return f"<figure>\n<figcaption>\n<h3>{escape(title)}</h3>{paragraph}{names}\n</figcaption>\n{chart}\n</figure>\n"


def legend(lines: Sequence[Line]) -> str:
    """The lines' names and last values; of lines of one kind, in the order in which they end, from the top."""
    entries = [(line.curve.finite[-1][1], line) for line in lines]
    if all(line.style == lines[0].style for line in lines):
        entries.sort(key=lambda entry: -entry[0])
    items = []
    for value, line in entries:
        swatch = f'<line class="{line.style} {line.paint}" x2="100%" y1="50%" y2="50%"/>'
        name = f'<span class="name" title="{escape(line.label)}">{escape(line.label)}</span>'
        last = f' <span class="value">{value_text(value)}</span>' if line.style != "raw" else ""
        items.append(f'<li><svg class="swatch" aria-hidden="true">{swatch}</svg>{name}{last}</li>')
    return f'<ul class="legend">{"".join(items)}</ul>'


def value_text(value: float) -> str:
    """A number to four digits, or whole if it is large."""
    if abs(value) >= 1000:
        return f"{value:,.0f}"
    return f"{value:#.4g}" if abs(value) >= 0.01 else f"{value:.3g}"
