"""The objective and the token losses of a packed batch, from one forward pass of the model."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Any

import numpy as np

from mft_train.loss.linear_cross_entropy import chunks, linear_cross_entropy, weighted_sum
from mft_train.model.forward_pass import forward_keywords, keeps_positions
from mft_train.rows.packed_batch import Row, pack_rows

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from torch import Tensor, nn
    from transformers import PreTrainedModel

    from mft_train.loss.router_loss import RouterLoss
    from mft_train.rows.packed_batch import PackedBatch


class LossHead:
    """Computes losses where the model would compute logits.

    If the model's logits are its output projection's and nothing more, `linear_cross_entropy` takes the projection's
    place for the pass and no logits are kept. Other models (a bias, scaled or soft-capped logits, an adapter on the
    projection) give their logits at supervised positions, and the loss is taken from those. Only a model that is of
    the latter kind and cannot be asked for positions gives its logits at all of them.
    """

    def __init__(self, model: PreTrainedModel, router: RouterLoss | None = None) -> None:
        self.projection = plain_projection(model)
        self.router = router
        self.keeps_positions = keeps_positions(model)

    def __call__(self, model: nn.Module, batch: PackedBatch, coefficients: Tensor) -> tuple[Tensor, Tensor, Any]:
        """The sum of coefficient times token loss (0-d, differentiable), the token losses (P,), the model's output.

        `coefficients` (P,) holds the weight of each supervised token. A batch without supervised tokens gives a zero
        that is still connected to every parameter, so that no rank waits for a gradient.
        """
        keywords = forward_keywords(model, batch) | (self.router.forward_keywords() if self.router else {})
        labels, positions = batch.labels, batch.kept_positions
        is_empty = labels.numel() == 0
        if is_empty:  # the one position that `forward_keywords` keeps, at no weight
            labels, coefficients = labels.new_zeros(1), coefficients.new_zeros(1)
        losses: list[Tensor] = []

        def kept(everything: Tensor) -> Tensor:
            return everything[0] if self.keeps_positions else everything[0, positions]

        projection = self.projection
        if projection is None:
            output = model(**keywords)
            losses.append(token_losses_of(kept(output.logits), labels))
            objective = weighted_sum(coefficients, losses[0])
        else:

            def weighted(hidden: Tensor) -> Tensor:
                objective, token_losses = linear_cross_entropy(kept(hidden), projection.weight, labels, coefficients)
                losses.append(token_losses)
                return objective

            with replaced_forward(projection, weighted):
                output = model(**keywords)
            objective = output.logits
        return objective, losses[0].detach()[: 0 if is_empty else None], output


def plain_projection(model: PreTrainedModel) -> nn.Linear | None:
    """The output projection, if a linear layer without bias whose output is what the model gives as logits; else None.

    Found out by giving the model a known output of the projection, of values large enough to show any cap.
    """
    import torch
    from torch import nn

    projection = model.get_output_embeddings()
    if type(projection) is not nn.Linear or projection.bias is not None:
        return None
    batch = pack_rows([Row(np.zeros(4, np.int64), np.ones(4, np.int64), np.array([4]), 0)]).to(projection.weight.device)
    length = 3 if keeps_positions(model) else 4
    known = torch.linspace(-100, 100, length * projection.out_features, device=projection.weight.device)
    known = known.view(1, length, -1).to(projection.weight.dtype)
    shapes = []

    def answer(hidden: Tensor) -> Tensor:
        shapes.append(hidden.shape)
        return known

    with replaced_forward(projection, answer), torch.no_grad():
        logits = model(**forward_keywords(model, batch)).logits
    is_plain = shapes == [(1, length, projection.in_features)] and is_same(logits, known)
    return projection if is_plain else None


def is_same(logits: Tensor, known: Tensor) -> bool:
    """Whether logits have the values of what was answered; without values, whether they are that very tensor."""
    import torch

    if known.is_meta:
        return logits.untyped_storage()._cdata == known.untyped_storage()._cdata
    return torch.equal(logits.float(), known.float())


def token_losses_of(logits: Tensor, labels: Tensor) -> Tensor:
    """Cross-entropy of each label, in nats: (P,), in float32 or wider; `logits` is (P, vocabulary)."""
    import torch
    from torch.nn import functional as F

    def widened(part: Tensor) -> Tensor:
        return part if part.dtype == torch.float64 else part.float()

    parts = chunks(*logits.shape)
    return torch.cat([F.cross_entropy(widened(logits[part]), labels[part], reduction="none") for part in parts])


@contextlib.contextmanager
def replaced_forward(module: nn.Module, forward: Callable[[Tensor], Tensor]) -> Iterator[None]:
    """Within the context, calling `module` runs `forward`; its hooks still run."""
    module.forward = forward
    try:
        yield
    finally:
        del module.forward
