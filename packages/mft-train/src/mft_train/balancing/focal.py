"""Focal weights on tasks: those that the model finds hard get more."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Sequence

    from mft_train.config.loss_config import FocalConfig


def focal(
    state: dict[str, Any], probe_losses: Sequence[float | None], settings: FocalConfig
) -> tuple[list[float], dict[str, Any]]:
    """Shares proportional to (1 - P_k)^gamma, P_k = exp(-l_k) the geometric mean probability of task k's tokens.

    A task that is not measured now keeps its last loss, which is the state; one never measured counts as the mean.
    """
    last = state.get("losses", [None] * len(probe_losses))
    losses = [old if loss is None else loss for old, loss in zip(last, probe_losses, strict=True)]
    known = [loss for loss in losses if loss is not None]
    fallback = sum(known) / len(known) if known else 0.0
    scores = (-np.expm1([-(fallback if loss is None else loss) for loss in losses])) ** settings.gamma
    total = scores.sum()
    shares = scores / total if total > 0 else np.full(len(losses), 1 / len(losses))
    return shares.tolist(), {"losses": losses}
