"""Cross-entropy of a linear output projection in chunks: the logits of all positions never exist at once."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch  # noqa: TID253 - an autograd function is a class of torch's; only a run imports this module

from mft_train.model.matrix_product import linear, without_autocast

if TYPE_CHECKING:
    from collections.abc import Iterator

    from torch import Tensor

# Memory that one chunk of float32 logits may take, and the fewest positions that a chunk has whatever it takes.
CHUNK_BYTES = 64 << 20
LEAST_CHUNK = 64


def linear_cross_entropy(hidden: Tensor, weight: Tensor, labels: Tensor, coefficients: Tensor) -> tuple[Tensor, Tensor]:
    """The weighted sum of token losses, which is differentiable, and the token losses, which are not.

    `hidden` is (P, width), `weight` (vocabulary, width), `labels` (P,) int64, `coefficients` (P,); returns a 0-d tensor
    and (P,), in nats, float32 or wider. The logits of a chunk are gone when the next begins: gradients are made
    from them in the forward pass, and backward only scales.
    """
    if torch.is_grad_enabled() and (hidden.requires_grad or weight.requires_grad):
        return _LinearCrossEntropy.apply(hidden, weight, labels, coefficients)
    compute_weight = weight.detach().to(compute_dtype(hidden))
    hidden = hidden.detach()
    parts = chunks(len(labels), len(weight))
    losses = torch.cat([softmax_parts(hidden[part], compute_weight, labels[part])[0] for part in parts])
    return weighted_sum(coefficients, losses), losses


def chunks(num_positions: int, vocabulary: int) -> Iterator[slice]:
    """The positions in stretches whose float32 logits take CHUNK_BYTES."""
    size = max(LEAST_CHUNK, CHUNK_BYTES // (4 * vocabulary))
    return (slice(start, start + size) for start in range(0, num_positions, size))


def compute_dtype(hidden: Tensor) -> torch.dtype:
    """The type that matrix products of `hidden` run in: autocast's where it is on."""
    device = hidden.device.type
    is_cast = not hidden.is_meta and torch.is_autocast_enabled(device)
    return torch.get_autocast_dtype(device) if is_cast else hidden.dtype


def softmax_parts(hidden: Tensor, weight: Tensor, labels: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Token losses (p,), unnormalised probabilities (p, vocabulary) and their sums (p, 1), in float32 or wider.

    The probabilities take the memory of the logits, and are the caller's to overwrite.
    """
    with without_autocast(hidden):
        logits = linear(hidden.to(weight.dtype), weight)
    if logits.dtype != torch.float64:
        logits = logits.float()
    chosen = logits.gather(-1, labels[:, None])
    highest = logits.amax(-1, keepdim=True)
    exponentials = logits.sub_(highest).exp_()
    sums = exponentials.sum(-1, keepdim=True)
    return (sums.log() + highest - chosen)[:, 0], exponentials, sums


def weighted_sum(coefficients: Tensor, losses: Tensor) -> Tensor:
    """The sum of coefficient times loss in the losses' type; as a product of vectors autocast would round it."""
    return (coefficients.to(losses.dtype) * losses).sum()


def add_product(total: Tensor, left: Tensor, right: Tensor, *, is_first: bool) -> None:
    """Adds a product to `total`, whose content the first product replaces."""
    if total.dtype == left.dtype:
        total.addmm_(left, right, beta=0 if is_first else 1)
    elif is_first:
        total.copy_(left @ right)
    else:
        total += left @ right


class _LinearCrossEntropy(torch.autograd.Function):
    """`linear_cross_entropy` where a gradient is wanted."""

    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, weight: Tensor, labels: Tensor, coefficients: Tensor
    ) -> tuple[Tensor, Tensor]:
        wants_hidden, wants_weight = ctx.needs_input_grad[:2]
        compute_weight = weight.to(compute_dtype(hidden))
        hidden_gradient = torch.empty_like(hidden) if wants_hidden else None
        weight_gradient = torch.empty_like(weight) if wants_weight else None
        losses = []
        for part in chunks(len(labels), len(weight)):
            chunk = hidden[part].to(compute_weight.dtype)
            chunk_losses, slope, sums = softmax_parts(chunk, compute_weight, labels[part])
            losses.append(chunk_losses)
            # d CE / d logits is the softmax less one at the label; its denominator and the coefficient go to the
            # smaller factor of each product.
            slope[torch.arange(len(slope), device=slope.device), labels[part]] -= sums[:, 0]
            slope = slope.to(compute_weight.dtype)
            scale = coefficients[part, None].to(sums.dtype) / sums
            with without_autocast(hidden):
                if hidden_gradient is not None:
                    hidden_gradient[part] = linear(slope, compute_weight.T) * scale
                if weight_gradient is not None:
                    scaled = (chunk * scale).to(slope.dtype)
                    add_product(weight_gradient, slope.T, scaled, is_first=part.start == 0)
        token_losses = torch.cat(losses)
        ctx.save_for_backward(hidden_gradient, weight_gradient)
        ctx.mark_non_differentiable(token_losses)
        return weighted_sum(coefficients, token_losses), token_losses

    @staticmethod
    def backward(ctx: Any, *upstreams: Tensor) -> tuple[Tensor | None, Tensor | None, None, None]:
        upstream = upstreams[0]  # of the sum; token losses have none
        hidden_gradient, weight_gradient = ctx.saved_tensors
        # Made for this one backward: scaled in place.
        return (
            None if hidden_gradient is None else hidden_gradient.mul_(upstream),
            None if weight_gradient is None else weight_gradient.mul_(upstream),
            None,
            None,
        )
