"""The self-paced balancer of MFTCoder 0.3: weights from the slopes of the last validation losses."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from mft_train.balancing.slopes import normalized, slopes, softmax

if TYPE_CHECKING:
    from collections.abc import Sequence

    from mft_train.config.config import SelfPacedConfig


def self_paced(
    state: dict[str, Any], probe_losses: Sequence[float | None], settings: SelfPacedConfig
) -> tuple[list[float], dict[str, Any]]:
    """Each task's share of the weight, uniform until the history is full, and the state after this update.

    With a_k the slope of task k's loss over the last `history_length` updates and n_k = K a_k / sum_j |a_j|, the
    shares are softmax(scale * softmax(n) * -n). The state holds those `losses`. A slope that is not known counts as 0.
    """
    losses = [*state.get("losses", []), list(probe_losses)][-settings.history_length :]
    new_state = {"losses": losses}
    if len(losses) < settings.history_length:
        return [1 / len(probe_losses)] * len(probe_losses), new_state
    pace = normalized(np.array([slope or 0.0 for slope in slopes(losses)]))
    return softmax(settings.scale * softmax(pace) * -pace).tolist(), new_state
