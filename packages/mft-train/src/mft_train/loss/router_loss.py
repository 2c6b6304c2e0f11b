"""The load-balancing loss of a mixture-of-experts model, as one more term of the objective."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from mft_train.errors import TrainError
from mft_train.model.forward_pass import forward_keywords
from mft_train.rows.packed_batch import Row, pack_rows

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel

    from mft_train.config.config import RunConfig

OFF = "set loss.router_aux_loss_coef: 0"


@dataclass(frozen=True, slots=True)
class RouterLoss:
    """What the term needs to know of a model: its weight, and how many experts a token goes to.

    The objective gains coefficient * (mean over the micro batches of all ranks, weighted by tokens, of their loss).
    Balance is a property of a batch, so this term, unlike every other, depends on how the global batch is cut.
    Source: Switch Transformers, arXiv:2101.03961, equations 4 to 6.
    """

    coefficient: float
    experts_per_token: int

    def forward_keywords(self) -> dict[str, Any]:
        """Keywords that make a model return its router logits, beside those of the batch."""
        return {"output_router_logits": True}

    def of_batch(self, router_logits: tuple[Tensor, ...]) -> Tensor:
        """The loss of one forward pass, `experts_per_token` where all experts are used alike: 0-d, differentiable.

        `router_logits` holds (tokens, experts) for every layer with experts.
        """
        from transformers.models.mixtral.modeling_mixtral import load_balancing_loss_func

        num_experts = router_logits[0].shape[-1]
        loss: Any = load_balancing_loss_func(router_logits, num_experts, self.experts_per_token)  # ty: ignore
        return loss

    def term(self, router_logits: tuple[Tensor, ...], num_tokens: int, global_tokens: Tensor | float) -> Tensor:
        """A micro batch's share of the objective: `num_tokens` are its own, `global_tokens` of the whole step."""
        return self.of_batch(router_logits) * (self.coefficient * num_tokens / global_tokens)


def find_router_loss(model: PreTrainedModel, config: RunConfig) -> RouterLoss | None:
    """The term that this model and config ask for, None for no term; raises TrainError if it cannot be computed.

    A short forward pass compares it with the model's own.
    """
    import torch

    asked = config.loss.router_aux_loss_coef
    own = getattr(model.config.get_text_config(), "router_aux_loss_coef", None)
    if asked and own is None:
        raise TrainError("the model has no router, loss.router_aux_loss_coef has no effect", fix=OFF)
    coefficient = own if asked is None else asked
    if not coefficient:
        return None
    ids = np.arange(8)
    batch = pack_rows([Row(ids, np.ones(8, dtype=np.uint8), np.array([8]), 0)]).to(next(model.parameters()).device)
    training = model.training
    model.eval()
    try:
        with torch.no_grad():
            output = model(**forward_keywords(model, batch), output_router_logits=True)
    finally:
        model.train(training)
    expected = getattr(output, "aux_loss", None)
    if not isinstance(expected, torch.Tensor):
        if asked is None:
            return None
        raise TrainError("the model does not compute the loss of its router", fix=OFF)
    found = RouterLoss(float(coefficient), getattr(model, "num_experts_per_tok", 1))
    if not torch.allclose(found.of_batch(output.router_logits), expected, rtol=1e-4):
        raise TrainError("the router loss of this model is another than that of Switch Transformers", fix=OFF)
    return found
