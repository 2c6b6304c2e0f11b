"""What a run came to, task by task: first, best and last losses, and the same in words."""

from __future__ import annotations

import math
from dataclasses import dataclass
from statistics import fmean
from typing import TYPE_CHECKING

from mft_train.report.curve import Curve
from mft_train.tracking.perplexity import perplexity

if TYPE_CHECKING:
    from mft_train.report.run_log import RunLog

COLUMNS = ("first", "best", "at step", "last", "change", "perplexity", "change", "last train", "weight", "share")
NONE = "-"
LONGEST_NAME = 28


@dataclass(frozen=True, slots=True)
class TaskFigures:
    """The figures of one task, or of the mean over tasks; NaN for none.

    Losses are in nats per token, the weight is the last one, the share of the objective the mean over logged steps.
    """

    name: str
    first: float
    first_step: int
    best: float
    best_step: int
    last: float
    last_train: float
    weight: float
    share: float
    is_mean: bool
    is_guard: bool

    @property
    def label(self) -> str:
        """The name, with what the task is."""
        return f"{self.name} (guard)" if self.is_guard else self.name

    @property
    def change(self) -> float:
        """The last validation loss less the first: below zero is better."""
        return self.last - self.first

    @property
    def cells(self) -> list[str]:
        """The figures as text, in the order of COLUMNS; a dash where there is none."""
        is_measured, has_change = math.isfinite(self.best), math.isfinite(self.change)
        return [
            loss_text(self.first),
            loss_text(self.best),
            f"{self.best_step:,}" if is_measured else NONE,
            loss_text(self.last),
            f"{self.change:+.4f}" if has_change else NONE,
            perplexity_text(self.last),
            f"{math.expm1(self.change):+.1%}" if has_change and self.change < 100 else NONE,
            loss_text(self.last_train),
            loss_text(self.weight),
            f"{self.share:.1%}" if math.isfinite(self.share) else NONE,
        ]


def task_figures(log: RunLog) -> list[TaskFigures]:
    """The figures of every task, then the mean over tasks if there is more than one task."""
    none = Curve()
    curves = (log.validation_losses, log.train_losses, log.task_weights, log.task_shares)
    guards = log.guards
    rows = [
        figures(task, *(of_kind.get(task, none) for of_kind in curves), is_guard=task in guards) for task in log.tasks
    ]
    trained = "mean of trained tasks" if guards else "mean of tasks"
    return [*rows, figures(trained, log.validation, none, none, none, is_mean=True)] if len(rows) > 1 else rows


def figures(
    name: str,
    validation: Curve,
    train: Curve,
    weights: Curve,
    shares: Curve,
    *,
    is_mean: bool = False,
    is_guard: bool = False,
) -> TaskFigures:
    """The figures of one task's curves."""
    best, best_step = min(((value, step) for step, value in validation.finite), default=(math.nan, 0))
    return TaskFigures(
        name=name,
        first=validation.values[0] if validation.values else math.nan,
        first_step=validation.steps[0] if validation.steps else 0,
        best=best,
        best_step=best_step,
        last=validation.last,
        last_train=train.last,
        weight=weights.last,
        share=fmean(shares.finite_values) if shares.finite else math.nan,
        is_mean=is_mean,
        is_guard=is_guard,
    )


def loss_text(value: float) -> str:
    """A loss or a weight with four decimals; a dash for none."""
    return f"{value:.4f}" if math.isfinite(value) else NONE


def perplexity_text(loss: float) -> str:
    """e to a mean loss in nats: the perplexity, to four digits."""
    value = perplexity(loss)
    if value is None:
        return "too large" if math.isfinite(loss) else NONE
    return f"{value:#.4g}".rstrip(".")


def figures_table(log: RunLog) -> str:
    """The figures as a plain-text table under a line about the whole run."""
    rows = [["validation loss", *COLUMNS], *([short_name(row.label), *row.cells] for row in task_figures(log))]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = [
        "  ".join([name.ljust(widths[0]), *(cell.rjust(width) for cell, width in zip(cells, widths[1:], strict=True))])
        for name, *cells in rows
    ]
    notes = [] if log.validation.steps else ["no validation in this run"]
    notes += [guard_note(task, rise) for task, rise in log.risen_guards.items()]
    return "\n".join([totals(log), "", *lines, *([""] if notes else []), *notes])


def guard_note(task: str, rise: float) -> str:
    """What is said of a guard task whose loss has risen."""
    return f"guard task {short_name(task)}: its validation loss has risen by {rise:.1%}"


def duration_text(seconds: float) -> str:
    """A time in words."""
    minutes = round(seconds / 60)
    if minutes < 1:
        return "under 1 min"
    if minutes < 60:
        return f"{minutes} min"
    return f"{minutes // 60} h {minutes % 60} min" if minutes < 48 * 60 else f"{minutes // 1440} days"


def short_name(name: str) -> str:
    """A name that fits a terminal: at most LONGEST_NAME characters, all of them printable."""
    printable = "".join(character if character.isprintable() else "?" for character in name)
    return printable if len(name) <= LONGEST_NAME else f"{printable[: LONGEST_NAME - 3]}..."


def totals(log: RunLog) -> str:
    """Steps, state, tokens and speed of the run in a sentence."""
    parts = [f"{log.last_step:,} {'step' if log.last_step == 1 else 'steps'}, {log.status}"]
    if (left := log.seconds_left) is not None:
        parts[0] += f", {duration_text(left)} of training left"
    if log.num_logged:
        tokens = f"{log.tokens:,} tokens ({log.supervised_tokens:,} supervised)"
        parts.append(tokens if log.num_logged == log.last_step else f"{tokens} in the {log.num_logged:,} logged steps")
    if log.seconds:
        parts.append(f"{log.tokens / log.seconds:,.0f} tokens/s")
    if log.peak_memory.finite:
        parts.append(f"peak memory {max(log.peak_memory.finite_values):.2f} GiB")
    if log.is_cut_off:
        parts.append("last line cut off and left out")
    return "; ".join(parts)
