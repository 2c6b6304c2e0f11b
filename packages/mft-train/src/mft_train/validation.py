"""Task losses on validation rows: all of them for a validation, a small seeded draw for a balancer's probe."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from mft_train.dataset_dir import DatasetDir, to_row, validation_rows
from mft_train.packed_batch import pack_rows

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from accelerate import Accelerator
    from torch import nn

    from mft_train.dataset_dir import Task
    from mft_train.loss_head import LossHead
    from mft_train.packed_batch import Row

# Keeps the probe's draws apart from every other use of the run's seed.
PROBE_STREAM = 0x9B0BE


def validate(accelerator: Accelerator, model: nn.Module, loss_head: LossHead, dataset: DatasetDir) -> dict[str, float]:
    """Mean token loss in nats of every task with validation tokens, in task order, over each row exactly once."""
    rows = validation_rows(dataset, accelerator.process_index, accelerator.num_processes)
    losses = task_losses(accelerator, model, loss_head, rows, len(dataset.tasks))
    return {task.name: loss for task, loss in zip(dataset.tasks, losses, strict=True) if loss is not None}


def task_losses(
    accelerator: Accelerator, model: nn.Module, loss_head: LossHead, rows: Iterable[Row], num_tasks: int
) -> list[float | None]:
    """Mean token loss in nats of every task over the rows of all ranks; None without supervised tokens.

    Runs without dropout and draws no random number, so that training is not disturbed.
    """
    import torch

    sums = torch.zeros(2, num_tasks, dtype=torch.float64, device=accelerator.device)
    bare_model = accelerator.unwrap_model(model)
    bare_model.eval()
    with torch.no_grad(), accelerator.autocast():
        for row in rows:
            batch = pack_rows([row]).to(accelerator.device)
            if batch.labels.numel():
                _, losses, _ = loss_head(bare_model, batch, batch.labels.new_ones(len(batch.labels)))
                sums[0, row.task_id] += losses.double().sum()
                sums[1, row.task_id] += batch.labels.numel()
    bare_model.train()
    loss_sums, tokens = accelerator.reduce(sums, reduction="sum").tolist()
    return [total / count if count else None for total, count in zip(loss_sums, tokens, strict=True)]


class Probe:
    """Small draws of validation rows of each task, the same for every number of processes."""

    def __init__(self, dataset: DatasetDir, tasks: Sequence[Task], num_rows: int, seed: int) -> None:
        from streaming import LocalDataset

        self.tasks = tasks
        self.num_rows = num_rows
        self.seed = seed
        self.streams = [LocalDataset(local=str(dataset.split_dir("validation", task))) for task in tasks]

    def rows(self, draw: int, rank: int, world_size: int) -> list[Row]:
        """This rank's share of draw number `draw`."""
        pairs = [
            (stream, index)
            for task, stream in zip(self.tasks, self.streams, strict=True)
            for index in draw_rows(self.seed, draw, task.task_id, len(stream), self.num_rows)
        ]
        return [to_row(stream[index]) for stream, index in pairs[rank::world_size]]


def draw_rows(seed: int, draw: int, task_id: int, available: int, wanted: int) -> list[int]:
    """Different row numbers below `available`, `wanted` of them if there are as many, from a generator of their own."""
    generator = np.random.default_rng([PROBE_STREAM, seed, draw, task_id])
    return generator.permutation(available)[:wanted].tolist()
