"""How often a run draws the rows of each task: by size, by proportion, or a number of times."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from mft_train.errors import TrainError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from mft_train.config.config import RunConfig
    from mft_train.rows.dataset_dir import DatasetDir, Task


def drawn_dataset(dataset: DatasetDir, config: RunConfig) -> DatasetDir:
    """The dataset as a run draws from it: a task with 0 in `mixture` or `repeats` has no training rows.

    Raises TrainError for unknown tasks, for a mixture that leaves the share of a task open, for repetitions that do not
    fill the run, and if no row is left.
    """
    names = [task.name for task in dataset.trained_tasks]
    if not names:
        raise TrainError("the dataset has no training rows", where=str(dataset.path))
    check_names(names, config)
    factors = config.mixture or config.repeats
    tasks = tuple(task if factors.get(task.name, 1.0) else replace(task, train_rows=0) for task in dataset.tasks)
    drawn = replace(dataset, tasks=tasks)
    rows = epoch_rows(drawn.trained_tasks, config)
    for task, number in zip(drawn.trained_tasks, rows, strict=True):
        if number < 1 and config.repeats:
            raise TrainError(
                f'repeats {config.repeats[task.name]} of the {task.train_rows} rows of task "{task.name}" is no row',
                fix="give a larger number, or 0 to leave the task out",
            )
        if number < 1:
            raise TrainError(
                f'task "{task.name}" has a share of {number / sum(rows):.2g} of the {sum(rows):,.0f} rows of an epoch, '
                "which is no row",
                fix="give it a larger share, or 0 in mixture to leave it out",
            )
    return drawn


def check_names(names: Sequence[str], config: RunConfig) -> None:
    """Raises TrainError for a mixture of other tasks than the dataset's."""
    limits = config.max_repetitions if isinstance(config.max_repetitions, dict) else {}
    for key, numbers in (("mixture", config.mixture), ("repeats", config.repeats), ("max_repetitions", limits)):
        unknown = sorted(set(numbers) - set(names))
        if unknown:
            raise TrainError(f'{key} names unknown task "{unknown[0]}"', fix=f"tasks: {', '.join(names)}")
        if numbers and not any(numbers.get(name, 1.0) for name in names):
            raise TrainError(f"{key} leaves out every task", fix="give a number above 0 to one of them")
    missing = sorted(set(names) - set(config.mixture))
    if config.mixture and missing:
        raise TrainError(
            f'mixture does not say the proportion of task "{missing[0]}"', fix="give one to every task, 0 leaves it out"
        )


def epoch_rows(tasks: Sequence[Task], config: RunConfig) -> list[float]:
    """The rows of each task in an epoch: with `repeats` whole numbers, rounded down as streaming does."""
    known = proportions(tasks, config)
    if known:
        total = sum(task.train_rows for task in tasks)
        return [known[task.name] * total for task in tasks]
    return [int(config.repeats.get(task.name, 1.0) * task.train_rows) for task in tasks]


def row_shares(tasks: Sequence[Task], config: RunConfig) -> list[float]:
    """The share of each task in the rows that are drawn; they sum to 1."""
    rows = epoch_rows(tasks, config)
    return [number / sum(rows) for number in rows]


def proportions(tasks: Sequence[Task], config: RunConfig) -> dict[str, float]:
    """The share of each of the trained tasks in the rows that are drawn, to sum to 1; empty where `repeats` says it, or
    each row comes once in an epoch.

    Raises TrainError if the rows of the run are more than `max_repetitions` allow.
    """
    if not config.mixture and config.mixture_exponent is None and not config.max_repetitions:
        return {}
    per_row = [task.train_tokens / task.train_rows if config.mixture_unit == "tokens" else 1.0 for task in tasks]
    exponent = 1.0 if config.mixture_exponent is None else config.mixture_exponent
    parts = [
        (config.mixture[task.name] if config.mixture else (task.train_rows * size) ** exponent) / size
        for task, size in zip(tasks, per_row, strict=True)
    ]
    shares = [part / sum(parts) for part in parts]
    if config.max_repetitions:
        shares = limited(shares, share_limits(tasks, config))
    return {task.name: share for task, share in zip(tasks, shares, strict=True)}


def share_limits(tasks: Sequence[Task], config: RunConfig) -> list[float]:
    """The share of the run's rows at which each task reaches its `max_repetitions`, infinite without; raises TrainError
    if all of them together are less than the run."""
    limits = config.max_repetitions
    most = [limits.get(task.name, float("inf")) if isinstance(limits, dict) else limits for task in tasks]
    total = sum(task.train_rows for task in tasks)
    run_rows = config.max_steps * config.global_batch_size if config.max_steps else (config.epochs or 0) * total
    allowed = [(number or float("inf")) * task.train_rows for number, task in zip(most, tasks, strict=True)]
    if sum(allowed) < run_rows:
        raise TrainError(
            f"max_repetitions allow {sum(allowed):,.0f} rows, the run draws {run_rows:,}",
            fix=f"at most {int(sum(allowed) // config.global_batch_size)} steps, or more repetitions",
        )
    return [rows / run_rows for rows in allowed]


def limited(shares: Sequence[float], limits: Sequence[float]) -> list[float]:
    """Shares of at most their limits: what is over goes to the others in proportion to theirs.

    Both are numbers above 0, `shares` sum to 1, and `limits` to at least that.
    """
    found = [0.0] * len(shares)
    left, open_share = 1.0, 1.0
    for index in sorted(range(len(shares)), key=lambda index: limits[index] / shares[index]):
        # The task that reaches its limit first; from one that does not, none does.
        found[index] = min(limits[index], left * shares[index] / open_share)
        left, open_share = left - found[index], open_share - shares[index]
    return found


def expected_counts(dataset: DatasetDir, config: RunConfig) -> list[list[float]]:
    """Supervised tokens and conversations of every task that a global batch holds on average: two lists, in task order.

    Over the rows of an epoch the batches' own counts sum to these times the number of full batches in it.
    """
    counts = [[0.0] * len(dataset.tasks) for _ in range(2)]
    tasks = dataset.trained_tasks
    for task, share in zip(tasks, row_shares(tasks, config), strict=True):
        times = config.global_batch_size * share / task.train_rows
        counts[0][task.task_id] = times * task.train_supervised_tokens
        counts[1][task.task_id] = times * task.train_conversations
    return counts
