"""One optimizer step on a global batch: counts first, then weighted losses, then the update."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from mft_train.loss.coefficients import count_batch, gradient_shares, segment_coefficients
from mft_train.rows.packed_batch import pack_rows

if TYPE_CHECKING:
    from collections.abc import Sequence

    import torch
    from torch import Tensor, nn

    from mft_train.engine.start import Engine
    from mft_train.loss.loss_head import LossHead
    from mft_train.rows.packed_batch import Row


@dataclass(frozen=True, slots=True)
class StepResult:
    """What one step saw, over the global batch; losses in nats, `task_losses` per supervised token.

    `loss` is the objective without `router_loss`, its term for a mixture of experts, which is 0 for other models.
    `task_losses[k]` is None for a task without supervised tokens in the batch. `task_shares` are the sums of their
    coefficients.
    """

    loss: float
    router_loss: float
    task_losses: list[float | None]
    task_shares: list[float]
    grad_norm: float
    supervised_tokens: int
    tokens: int

    @property
    def is_finite(self) -> bool:
        """Whether the update can be made."""
        return math.isfinite(self.loss + self.router_loss) and math.isfinite(self.grad_norm)


def accumulate_gradients(
    engine: Engine,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    loss_head: LossHead,
    rows: Sequence[Row],
    *,
    micro_batch_size: int,
    reduction: str,
    task_weights: Tensor,
    max_grad_norm: float,
    expected_counts: Tensor | None = None,
) -> StepResult:
    """Leaves the clipped gradient of the objective over the global batch in `model`.

    `rows` are this rank's; `task_weights` is (num_tasks,) float64. The gradient is that of the sum of
    c_i * CE_i over all ranks, c_i from `expected_counts`, (2, num_tasks), if they are given, else from the batch's own.
    """
    import torch

    accelerator = engine.accelerator
    num_tasks = len(task_weights)
    batches = [
        pack_rows(rows[start : start + micro_batch_size]).to(accelerator.device)
        for start in range(0, len(rows), micro_batch_size)
    ]
    counts = [
        count_batch(batch.segment_tasks, batch.segment_tokens, num_tasks, batch.segment_weights) for batch in batches
    ]
    supervised = [count_batch(batch.segment_tasks, batch.segment_tokens, num_tasks)[0] for batch in batches]
    local_counts = torch.stack([*torch.stack(counts).sum(0), torch.stack(supervised).sum(0)])
    local_tokens = local_counts.new_tensor([sum(batch.input_ids.numel() for batch in batches)])
    reduced = accelerator.reduce(torch.cat([local_counts.flatten(), local_tokens]), reduction="sum")
    counted, global_tokens = reduced[:-1].view_as(local_counts), reduced[-1]
    global_counts, task_tokens = counted[:2], counted[2].tolist()
    divisors = global_counts if expected_counts is None else expected_counts
    # Totals over the batch: the objective, the router's term, and every task's sum of token losses.
    totals = torch.zeros(2 + num_tasks, dtype=torch.float64, device=accelerator.device)
    for index, batch in enumerate(batches):
        with engine.gradients(model, is_last=index == len(batches) - 1):
            coefficients = segment_coefficients(
                reduction, batch.segment_tasks, batch.segment_tokens, divisors, task_weights, batch.segment_weights
            )
            objective, losses, output = loss_head(model, batch, coefficients[batch.token_segments])
            totals[0] += objective.detach()
            if loss_head.router:
                term = loss_head.router.term(output.router_logits, batch.input_ids.numel(), global_tokens)
                totals[1] += term.detach()
                objective = objective + term
            engine.backward(model, objective)
        totals[2:].index_add_(0, batch.segment_tasks[batch.token_segments], losses.double())
    grad_norm = engine.clip(model, optimizer, max_grad_norm)
    loss, router_loss, *task_sums = accelerator.reduce(totals, reduction="sum").tolist()
    return StepResult(
        loss=loss,
        router_loss=router_loss,
        task_losses=[total / count if count else None for total, count in zip(task_sums, task_tokens, strict=True)],
        task_shares=gradient_shares(reduction, global_counts, task_weights, expected_counts).tolist(),
        grad_norm=grad_norm,
        supervised_tokens=int(sum(task_tokens)),
        tokens=int(global_tokens),
    )
