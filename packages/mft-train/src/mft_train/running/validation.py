"""A validation: the loss of every task over its validation rows, or a fixed subset of them, each once."""

from __future__ import annotations

from typing import TYPE_CHECKING

from mft_train.loss.task_losses import CutShort, task_losses
from mft_train.rows.dataset_dir import DatasetDir, validation_rows

if TYPE_CHECKING:
    from collections.abc import Callable

    from accelerate import Accelerator
    from torch import nn

    from mft_train.config.config import RunConfig
    from mft_train.loss.loss_head import LossHead


def validate(
    accelerator: Accelerator,
    model: nn.Module,
    loss_head: LossHead,
    dataset: DatasetDir,
    config: RunConfig,
    is_cut_short: Callable[[], bool],
) -> dict[str, float] | None:
    """Mean token loss in nats of every task with validation tokens, in task order, over each row exactly once.

    At most `config.validation_rows` rows of a task are read. None if `is_cut_short`, which all ranks ask together
    before each forward pass, ended it.
    """
    rows = validation_rows(dataset, accelerator.process_index, accelerator.num_processes, config.validation_rows)
    try:
        losses = task_losses(
            accelerator, model, loss_head, rows, len(dataset.tasks), config.micro_batch_size, is_cut_short
        )
    except CutShort:
        return None
    return {task.name: loss for task, loss in zip(dataset.tasks, losses, strict=True) if loss is not None}
