"""Guard tasks: validated, and never trained."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from mft_train.errors import TrainError

if TYPE_CHECKING:
    from mft_train.config.config import RunConfig
    from mft_train.rows.dataset_dir import DatasetDir


def guarded(dataset: DatasetDir, config: RunConfig) -> DatasetDir:
    """The dataset with no training rows for the `guards` of the config.

    Raises TrainError for an unknown task, one that cannot be validated, and one that another key draws rows of.
    """
    tasks = {task.name: task for task in dataset.tasks}
    for name in config.guards:
        if name not in tasks:
            raise TrainError(f'guards names unknown task "{name}"', fix=f"tasks: {', '.join(tasks)}")
        if not tasks[name].validation_rows:
            raise TrainError(
                f'guard task "{name}" has no validation rows', where=str(dataset.path), fix="build it with some"
            )
        for key, numbers in (("mixture", config.mixture), ("repeats", config.repeats)):
            if name in numbers:
                raise TrainError(f'guard task "{name}" is in {key} too', fix="name it in one of them")
    if config.guards and not any(task.train_rows for task in dataset.tasks if task.name not in config.guards):
        raise TrainError("guards leave no task to train", fix="name fewer")
    kept = (replace(task, train_rows=0) if task.name in config.guards else task for task in dataset.tasks)
    return replace(dataset, tasks=tuple(kept))


def guard_names(dataset: DatasetDir) -> list[str]:
    """The tasks that are validated and not trained, whatever left them out."""
    return [task.name for task in dataset.tasks if task.validation_rows and not task.train_rows]
