"""One coefficient per supervised token: how every loss reduction becomes the same weighted cross-entropy.

The objective of an optimizer step is `sum_i c_i * CE_i` over the supervised tokens of the *global* batch (all
processes, all accumulation steps). `c_i` depends only on counts that are known before the first forward pass, so
the gradient is the same however the batch is cut into processes, micro batches and packed rows.
Source of the reductions: MFTCoder, arXiv:2311.02303.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor


def count_batch(
    segment_tasks: Tensor, segment_tokens: Tensor, num_tasks: int, segment_weights: Tensor | None = None
) -> Tensor:
    """Supervised tokens (row 0) and conversations (row 1) of every task: (2, num_tasks) float64.

    `segment_tasks` and `segment_tokens` are (num_segments,): task id and supervised tokens of each conversation, which
    counts `segment_weights` times, once if None. One without supervised tokens is not counted. Counts add up over micro
    batches and processes.
    """
    import torch

    tokens = segment_tokens.to(torch.float64)
    weights = torch.ones_like(tokens) if segment_weights is None else segment_weights
    counts = torch.zeros(2, num_tasks, dtype=torch.float64, device=tokens.device)
    counts[0].index_add_(0, segment_tasks, weights * tokens)
    counts[1].index_add_(0, segment_tasks, weights * (tokens > 0))
    return counts


def segment_coefficients(
    reduction: str,
    segment_tasks: Tensor,
    segment_tokens: Tensor,
    global_counts: Tensor,
    task_weights: Tensor,
    segment_weights: Tensor | None = None,
) -> Tensor:
    """The coefficient of each supervised token of each conversation: (num_segments,) float64.

    `global_counts` is the (2, num_tasks) sum of `count_batch` over the global batch, or what that is on average;
    `task_weights` is (num_tasks,).
    With N, N_k, n_s supervised tokens of the batch, task and conversation, S, S_k conversations and W the sum of the
    weights of tasks with tokens in these counts:
    token_mean 1/N; sample_mean 1/(S n_s); task_mean w_k/(W N_k); task_sample_mean w_k/(W S_k n_s).
    A conversation's own weight v_s multiplies its coefficients, and the counts: N is the sum of v_s n_s, S that of v_s.
    Conversations without supervised tokens get 0.
    """
    import torch

    tokens, samples = global_counts
    sample_tokens = segment_tokens.to(torch.float64)
    present = tokens > 0
    weights = torch.where(present, task_weights.to(torch.float64), 0.0)
    weights = weights / weights.sum()
    if reduction == "token_mean":
        coefficients = (1.0 / tokens.sum()).expand(sample_tokens.shape)
    elif reduction == "sample_mean":
        coefficients = 1.0 / (samples.sum() * sample_tokens)
    elif reduction == "task_mean":
        coefficients = (weights / tokens)[segment_tasks]
    elif reduction == "task_sample_mean":
        coefficients = (weights / samples)[segment_tasks] / sample_tokens
    else:
        raise ValueError(f"unknown reduction {reduction!r}")
    if segment_weights is not None:
        coefficients = coefficients * segment_weights
    return torch.where(segment_tokens > 0, coefficients, 0.0)


def gradient_shares(
    reduction: str, global_counts: Tensor, task_weights: Tensor, expected_counts: Tensor | None = None
) -> Tensor:
    """The sum of each task's coefficients over the global batch: (num_tasks,) float64.

    They sum to 1, and do so on average only with `expected_counts` in place of the batch's own `global_counts`.
    """
    import torch

    if reduction in ("token_mean", "sample_mean"):
        counted = global_counts[0 if reduction == "token_mean" else 1]
        return counted / counted.sum()
    counts = global_counts if expected_counts is None else expected_counts
    weights = torch.where(counts[0] > 0, task_weights.to(torch.float64), 0.0)
    kind = 0 if reduction == "task_mean" else 1
    return weights / weights.sum() * torch.where(counts[0] > 0, global_counts[kind] / counts[kind], 0.0)
