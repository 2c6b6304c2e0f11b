"""What a run gives each task: its share of the rows, the tokens and the gradient, and how often its rows are seen."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from mft_train.rows.mixture import epoch_rows

if TYPE_CHECKING:
    from collections.abc import Sequence

    from mft_train.config.config import RunConfig
    from mft_train.rows.dataset_dir import DatasetDir

# Enough draws of a batch for three digits of a share, within a second or two for thousands of tasks.
MOST_DRAWS, MOST_NUMBERS = 20_000, 4_000_000
# A share of less than its weight asks for, divided by this, is told.
SMALL = 3


@dataclass(frozen=True, slots=True)
class TaskShare:
    """Expected shares of one task, each of a sum of 1 over the tasks, and passes over its rows in the whole run.

    `asked` is the share of the gradient that its weight asks for, None where the loss knows no task weights. A balancer
    counts with equal weights.
    """

    task: str
    rows: float
    tokens: float
    supervised_tokens: float
    gradient: float
    asked: float | None
    epochs: float


def task_shares(dataset: DatasetDir, config: RunConfig, num_steps: int) -> list[TaskShare]:
    """The shares of every task that is trained on, in task order."""
    tasks = dataset.trained_tasks
    drawn = np.array(epoch_rows(tasks, config), dtype=np.float64)
    sizes = np.array([task.train_rows for task in tasks])
    means = np.array([[task.train_tokens, task.train_supervised_tokens, task.train_conversations] for task in tasks])
    amounts = drawn[:, None] * means / sizes[:, None]
    tokens, supervised, conversations = (amounts / amounts.sum(0)).T
    weights = np.array([config.loss.task_weights.get(task.name, 1.0) for task in tasks])
    asked = weights / weights.sum() if config.loss.reduction.startswith("task_") else None
    if config.loss.reduction == "token_mean":
        gradient = supervised
    elif config.loss.reduction == "sample_mean":
        gradient = conversations
    elif config.loss.task_counts == "expected":
        gradient = weights / weights.sum()
    else:
        gradient = batch_shares(drawn, weights, config.global_batch_size, config.seed)
    steps_per_epoch = -(-round(drawn.sum()) // config.global_batch_size)
    whole, rest = divmod(num_steps, steps_per_epoch)
    seen = (whole + rest * config.global_batch_size / drawn.sum()) * drawn / sizes
    rows = drawn / drawn.sum()
    return [
        TaskShare(
            task.name,
            float(rows[index]),
            float(tokens[index]),
            float(supervised[index]),
            float(gradient[index]),
            None if asked is None else float(asked[index]),
            float(seen[index]),
        )
        for index, task in enumerate(tasks)
    ]


def batch_shares(drawn: np.ndarray, weights: np.ndarray, batch_rows: int, seed: int) -> np.ndarray:
    """The mean over batches of each task's weight over those of the tasks in the batch: (num_tasks,), to sum to 1.

    A batch is `batch_rows` of an epoch's rows without replacement, `drawn[k]` of them of task k. From seeded draws: the
    error is some thousandths.
    """
    generator = np.random.default_rng([seed, batch_rows])
    num_draws = min(MOST_DRAWS, max(500, MOST_NUMBERS // len(drawn)))
    counts = np.maximum(np.round(drawn), 1).astype(np.int64)
    if batch_rows >= counts.sum():
        return weights / weights.sum()
    present = generator.multivariate_hypergeometric(counts, batch_rows, size=num_draws, method="marginals") > 0
    parts = present * weights
    return (parts / parts.sum(1, keepdims=True)).mean(0)


def warning(shares: Sequence[TaskShare]) -> str | None:
    """A line about the task that gets least of what its weight asks for, if that is less than a third; else None."""
    asking = [(share.gradient / share.asked, share) for share in shares if share.asked]
    ratio, least = min(asking, key=lambda pair: pair[0], default=(1.0, None))
    if least is None or ratio * SMALL >= 1:
        return None
    number = sum(ratio * SMALL < 1 for ratio, _ in asking)
    others = f", and {number - 1} more tasks get less than a third" if number > 1 else ""
    return (
        f'task "{least.task}" is to get about {least.gradient:.1%} of the gradient, its weight asks for '
        f"{least.asked:.1%}{others}: most batches hold none of its rows; raise global_batch_size or its share of the "
        "rows (mixture, mixture_exponent), or set loss.task_counts: expected"
    )


def to_lines(shares: Sequence[TaskShare], most: int = 30) -> list[str]:
    """A table with a line for each of the first `most` tasks."""
    head = ["task", "rows", "tokens", "supervised", "gradient", "asked", "epochs"]
    lines = [head, *(cells(share) for share in shares[:most])]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    texts = [
        "  ".join([name.ljust(widths[0]), *(cell.rjust(width) for cell, width in zip(rest, widths[1:], strict=True))])
        for name, *rest in lines
    ]
    return [*texts, *([f"and {len(shares) - most:,} more tasks, in --json"] if len(shares) > most else [])]


def cells(share: TaskShare) -> list[str]:
    """One line of the table."""
    parts = (share.rows, share.tokens, share.supervised_tokens, share.gradient, share.asked)
    return [share.task, *("-" if part is None else f"{part:.1%}" for part in parts), f"{share.epochs:.2f}"]
