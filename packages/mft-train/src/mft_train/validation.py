"""Per-task validation loss over every validation row exactly once, whatever the number of processes."""

from __future__ import annotations

from typing import TYPE_CHECKING

from mft_train.dataset_dir import DatasetDir, validation_rows
from mft_train.packed_batch import pack_rows
from mft_train.weighted_loss import token_losses

if TYPE_CHECKING:
    from accelerate import Accelerator
    from torch import nn


def validate(accelerator: Accelerator, model: nn.Module, dataset: DatasetDir) -> dict[str, float]:
    """Mean token loss in nats of every task with validation tokens, in task order.

    Runs without dropout and draws no random number, so that training is not disturbed.
    """
    import torch

    sums = torch.zeros(2, len(dataset.tasks), dtype=torch.float64, device=accelerator.device)
    bare_model = accelerator.unwrap_model(model)
    bare_model.eval()
    with torch.no_grad(), accelerator.autocast():
        for row in validation_rows(dataset, accelerator.process_index, accelerator.num_processes):
            batch = pack_rows([row]).to(accelerator.device)
            if batch.labels.numel():
                logits = bare_model(**batch.forward_keywords()).logits
                sums[0, row.task_id] += token_losses(logits[0], batch.labels).double().sum()
                sums[1, row.task_id] += batch.labels.numel()
    bare_model.train()
    loss_sums, tokens = accelerator.reduce(sums, reduction="sum").tolist()
    return {task.name: loss_sums[task.task_id] / tokens[task.task_id] for task in dataset.tasks if tokens[task.task_id]}
