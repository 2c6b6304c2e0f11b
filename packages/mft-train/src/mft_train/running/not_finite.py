"""The error for a step whose loss or gradient is not finite: which tasks, and which rows of the dataset."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from mft_train.errors import TrainError
from mft_train.model.isolation import row_logits

if TYPE_CHECKING:
    from accelerate import Accelerator
    from torch import nn

    from mft_train.rows.dataset_dir import DatasetDir
    from mft_train.rows.row_stream import StepRows
    from mft_train.running.train_step import StepResult

MOST_ROWS = 8  # named in the message


def not_finite(
    accelerator: Accelerator,
    model: nn.Module,
    dataset: DatasetDir,
    step_rows: StepRows,
    result: StepResult,
    global_step: int,
) -> TrainError:
    """The error for a step that would spoil the weights; all ranks call this together.

    Each row is run forward once more, by itself, to find those that are to blame. Where none is, as when the gradient
    overflows, the message has the rows of the step.
    """
    from accelerate.utils import gather_object

    spoilt = spoilt_rows(accelerator, model, step_rows)
    own = [(row.task_id, number) for row, number in zip(step_rows.rows, step_rows.row_numbers, strict=True)]
    everyone = gather_object(list(zip(own, spoilt, strict=True)))
    blamed = sorted({key for key, is_spoilt in everyone if is_spoilt})
    present = sorted({key for key, _ in everyone})

    losses = zip(dataset.tasks, result.task_losses, strict=True)
    tasks = [task.name for task, loss in losses if loss is not None and not math.isfinite(loss)]
    what = f"the loss of {', '.join(tasks)}" if tasks else f"the gradient norm {result.grad_norm}"
    which = "because of training rows" if blamed else "no row alone is to blame, the training rows are"
    task_id, number = (blamed or present)[0]
    inspect = f"mft-data inspect {dataset.path} --task {dataset.tasks[task_id].name} --row {number}"
    return TrainError(
        f"step {global_step} stopped before the update: {what} is not finite, "
        f"{which} {listed(dataset, blamed or present)}",
        fix=f"look at them with `{inspect}`, or lower learning_rate",
    )


def spoilt_rows(accelerator: Accelerator, model: nn.Module, step_rows: StepRows) -> list[bool]:
    """For each of this rank's rows, whether a logit that its loss depends on is not finite."""
    import torch

    bare_model = accelerator.unwrap_model(model).eval()
    with torch.no_grad(), accelerator.autocast():
        return [not torch.isfinite(row_logits(bare_model, row)).all().item() for row in step_rows.rows]


def listed(dataset: DatasetDir, keys: list[tuple[int, int]]) -> str:
    """Rows as `task number`, the first of many."""
    names = [f"{dataset.tasks[task_id].name} {number}" for task_id, number in keys[:MOST_ROWS]]
    rest = len(keys) - len(names)
    return ", ".join(names) + (f" and {rest} more" if rest else "")
