"""Perplexity: how many tokens a model in effect wavers between, from its mean loss."""

from __future__ import annotations

import math


def perplexity(loss: float) -> float | None:
    """e to a mean loss in nats per token; None if the loss is not finite or the result is too large for a float."""
    try:
        return math.exp(loss) if math.isfinite(loss) else None
    except OverflowError:
        return None
