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

    Raises TrainError for unknown tasks, for a mixture that leaves the share of a task open, and if no row is left.
    """
    names = [task.name for task in dataset.trained_tasks]
    if not names:
        raise TrainError("the dataset has no training rows", where=str(dataset.path))
    for key, numbers in (("mixture", config.mixture), ("repeats", config.repeats)):
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
    factors = config.mixture or config.repeats
    tasks = tuple(task if factors.get(task.name, 1.0) else replace(task, train_rows=0) for task in dataset.tasks)
    drawn = replace(dataset, tasks=tasks)
    for task in drawn.trained_tasks:
        if not epoch_rows(task, config):
            raise TrainError(
                f'repeats {config.repeats[task.name]} of the {task.train_rows} rows of task "{task.name}" is no row',
                fix="give a larger number, or 0 to leave the task out",
            )
    return drawn


def epoch_rows(task: Task, config: RunConfig) -> int:
    """The rows of a task in an epoch, where no mixture is given; streaming rounds down as well."""
    return int(config.repeats.get(task.name, 1.0) * task.train_rows)


def task_shares(tasks: Sequence[Task], config: RunConfig) -> list[float]:
    """The share of each task in the rows that are drawn; they sum to 1."""
    parts = [config.mixture[task.name] if config.mixture else epoch_rows(task, config) for task in tasks]
    return [part / sum(parts) for part in parts]
