"""FAMO, fast adaptive multitask optimization: weights that make every task's loss fall at the same relative rate.

Source: FAMO, arXiv:2306.03792, with the probe's losses in the place of the training batch's.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from mft_train.balancing.slopes import softmax

if TYPE_CHECKING:
    from collections.abc import Sequence

    from mft_train.config.loss_config import FamoConfig

# Added to losses before the logarithm. The least possible loss, l_min in the paper, is 0 for a cross-entropy.
EPSILON = 1e-8
BETA1, BETA2, ADAM_EPSILON = 0.9, 0.999, 1e-8


def famo(
    state: dict[str, Any], probe_losses: Sequence[float | None], settings: FamoConfig
) -> tuple[list[float], dict[str, Any]]:
    """Each task's share of the weight and the state after this update.

    With z = softmax(x) and D_k = l_k + 1e-8 the shares are (z_k / D_k) / sum_j (z_j / D_j). Before that x moves by one
    step of Adam along the softmax's Jacobian times log D(last update) - log D(now), so the losses of two updates must
    come from the same rows. A task that is not measured now keeps its last loss; one never measured counts as the mean.
    The state holds x as `logits`, Adam's `first_moments`, `second_moments` and `updates`, and the last `losses`.
    """
    zeros = [0.0] * len(probe_losses)
    before = state.get("losses", [None] * len(probe_losses))
    now = [last if loss is None else loss for last, loss in zip(before, probe_losses, strict=True)]
    logits = np.array(state.get("logits", zeros))
    moments = np.array(state.get("first_moments", zeros)), np.array(state.get("second_moments", zeros))
    updates = state.get("updates", 0)
    if state:
        updates += 1
        gradient = softmax_gradient(logits, improvements(before, now)) + settings.decay * logits
        moments = (
            BETA1 * moments[0] + (1 - BETA1) * gradient,
            BETA2 * moments[1] + (1 - BETA2) * gradient * gradient,
        )
        step = moments[0] / (1 - BETA1**updates)
        scale = np.sqrt(moments[1] / (1 - BETA2**updates)) + ADAM_EPSILON
        logits = logits - settings.learning_rate * step / scale
    new_state = {
        "logits": logits.tolist(),
        "first_moments": moments[0].tolist(),
        "second_moments": moments[1].tolist(),
        "updates": updates,
        "losses": now,
    }
    known = [loss for loss in now if loss is not None]
    fallback = sum(known) / len(known) if known else 1.0
    distances = np.array([fallback if loss is None else loss for loss in now]) + EPSILON
    shares = softmax(logits) / distances
    return (shares / shares.sum()).tolist(), new_state


def improvements(before: Sequence[float | None], now: Sequence[float | None]) -> np.ndarray:
    """log D(before) - log D(now) of each task, 0 where one of the two is not known."""
    pairs = zip(before, now, strict=True)
    logs = ([0.0, 0.0] if old is None or new is None else np.log([old + EPSILON, new + EPSILON]) for old, new in pairs)
    return np.array([old - new for old, new in logs])


def softmax_gradient(logits: np.ndarray, direction: np.ndarray) -> np.ndarray:
    """The transposed Jacobian of softmax at `logits`, times `direction`."""
    shares = softmax(logits)
    return shares * (direction - shares @ direction)
