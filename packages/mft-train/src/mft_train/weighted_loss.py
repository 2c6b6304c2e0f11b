"""The weighted cross-entropy of a packed batch and the token losses of its tasks, from one forward pass."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

    from mft_train.packed_batch import PackedBatch

# Supervised positions whose logits are widened to float32 at a time.
CHUNK_TOKENS = 512


def token_losses(logits: Tensor, labels: Tensor) -> Tensor:
    """Cross-entropy of each label, in nats: (P,), in float32 or wider; `logits` is (P, vocabulary)."""
    import torch
    from torch.nn import functional as F

    chunks = zip(logits.split(CHUNK_TOKENS), labels.split(CHUNK_TOKENS), strict=True)
    return torch.cat([F.cross_entropy(widen(part), target, reduction="none") for part, target in chunks])


def widen(logits: Tensor) -> Tensor:
    """Logits in float32, or unchanged if they are float64."""
    import torch

    return logits if logits.dtype == torch.float64 else logits.float()


def weighted_loss(logits: Tensor, batch: PackedBatch, coefficients: Tensor, num_tasks: int) -> tuple[Tensor, Tensor]:
    """The batch's share of the objective (0-d, differentiable) and its token loss sums by task (num_tasks,) float64.

    `logits` is (1, P, vocabulary) as `forward_keywords` asks for, `coefficients` (G,) holds one weight per
    conversation. A batch without supervised tokens gives a zero that is still connected to the model.
    """
    import torch

    sums = torch.zeros(num_tasks, dtype=torch.float64, device=logits.device)
    if batch.labels.numel() == 0:
        return logits.sum() * 0.0, sums
    losses = token_losses(logits[0], batch.labels)
    tasks = batch.segment_tasks[batch.token_segments]
    sums.index_add_(0, tasks, losses.detach().to(torch.float64))
    weights = coefficients[batch.token_segments].to(losses.dtype)
    return (weights * losses).sum(), sums
