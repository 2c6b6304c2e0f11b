"""The loss of every task on given rows, without a gradient."""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING

from mft_train.rows.packed_batch import pack_rows

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from accelerate import Accelerator
    from torch import nn

    from mft_train.loss.loss_head import LossHead
    from mft_train.rows.packed_batch import Row


class CutShort(Exception):  # noqa: N818 - nothing is wrong
    """The measurement was given up before its end."""


def task_losses(
    accelerator: Accelerator,
    model: nn.Module,
    loss_head: LossHead,
    rows: Iterable[Row],
    num_tasks: int,
    micro_batch_size: int,
    is_cut_short: Callable[[], bool] = lambda: False,
) -> list[float | None]:
    """Mean token loss in nats of every task over the rows of all ranks; None for a task without supervised tokens.

    `micro_batch_size` rows go through one forward pass. Every rank has as many rows, so that all make as many passes,
    as ranks that share weights must. Runs without dropout and draws no random number: training is not disturbed. Raises
    CutShort once `is_cut_short`, which all ranks ask together before each pass, says so.
    """
    import torch

    sums = torch.zeros(2, num_tasks, dtype=torch.float64, device=accelerator.device)
    bare_model = accelerator.unwrap_model(model)
    bare_model.eval()
    try:
        with torch.no_grad(), accelerator.autocast():
            remaining = iter(rows)
            while micro_batch := list(itertools.islice(remaining, micro_batch_size)):
                if is_cut_short():
                    raise CutShort
                batch = pack_rows(micro_batch).to(accelerator.device)
                _, losses, _ = loss_head(bare_model, batch, batch.labels.new_ones(len(batch.labels)))
                tasks = batch.segment_tasks[batch.token_segments]
                sums[0].index_add_(0, tasks, losses.double())
                sums[1] += tasks.bincount(minlength=num_tasks)
    finally:
        bare_model.train()
    loss_sums, tokens = accelerator.reduce(sums, reduction="sum").tolist()
    return [total / count if count else None for total, count in zip(loss_sums, tokens, strict=True)]
