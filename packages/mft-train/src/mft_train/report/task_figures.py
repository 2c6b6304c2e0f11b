"""What a run came to, task by task: first, best and last losses, and the same in words."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from mft_train.report.curve import Curve
from mft_train.tracking.perplexity import perplexity

if TYPE_CHECKING:
    from mft_train.report.run_log import RunLog

COLUMNS = ("first", "best", "at step", "last", "change", "perplexity", "change", "last train", "weight")
NONE = "-"
LONGEST_NAME = 36


@dataclass(frozen=True, slots=True)
class TaskFigures:
    """The figures of one task, or of the mean over tasks; losses in nats per token, the last weight; NaN for none."""

    name: str
    first: float
    first_step: int
    best: float
    best_step: int
    last: float
    last_train: float
    weight: float
    is_mean: bool

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
        ]


def task_figures(log: RunLog) -> list[TaskFigures]:
    """The figures of every task, then the mean over tasks if there is more than one task."""
    none = Curve()
    curves = (log.validation_losses, log.train_losses, log.task_weights)
    rows = [figures(task, *(of_kind.get(task, none) for of_kind in curves)) for task in log.tasks]
    return [*rows, figures("mean of tasks", log.validation, none, none, is_mean=True)] if len(rows) > 1 else rows


def figures(name: str, validation: Curve, train: Curve, weights: Curve, *, is_mean: bool = False) -> TaskFigures:
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
        is_mean=is_mean,
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
    rows = [["validation loss", *COLUMNS], *([short_name(row.name), *row.cells] for row in task_figures(log))]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = [
        "  ".join([name.ljust(widths[0]), *(cell.rjust(width) for cell, width in zip(cells, widths[1:], strict=True))])
        for name, *cells in rows
    ]
    return "\n".join([totals(log), "", *lines, *([] if log.validation.steps else ["", "no validation in this run"])])


def short_name(name: str) -> str:
    """A name that fits a terminal: at most LONGEST_NAME characters, all of them printable."""
    printable = "".join(character if character.isprintable() else "?" for character in name)
    return printable if len(name) <= LONGEST_NAME else f"{printable[: LONGEST_NAME - 3]}..."


def totals(log: RunLog) -> str:
    """Steps, state, tokens and speed of the run in a sentence."""
    parts = [f"{log.last_step:,} {'step' if log.last_step == 1 else 'steps'}, {log.status}"]
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
