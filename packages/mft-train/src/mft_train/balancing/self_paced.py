"""The self-paced balancer of MFTCoder 0.3: weights from the slopes of the last validation losses."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from mft_train.balancing.slopes import normalized, slopes, softmax, with_measurements

if TYPE_CHECKING:
    from collections.abc import Sequence

    from mft_train.config.loss_config import SelfPacedConfig


def self_paced(
    state: dict[str, Any], probe_losses: Sequence[float | None], settings: SelfPacedConfig
) -> tuple[list[float], dict[str, Any]]:
    """Each task's share of the weight, uniform until a history is full, and the state after this update.

    With a_k the slope of task k's loss over its last `history_length` measurements and n_k = K a_k / sum_j |a_j|, the
    shares are softmax(scale * softmax(n) * -n). The state holds those measurements as `points`, and the number of
    `updates`. A slope that is not known counts as 0.
    """
    num_tasks, updates = len(probe_losses), state.get("updates", 0) + 1
    points = with_measurements(state.get("points", [[]] * num_tasks), updates, probe_losses, settings.history_length)
    new_state = {"points": points, "updates": updates}
    if max(map(len, points)) < settings.history_length:
        return [1 / num_tasks] * num_tasks, new_state
    pace = normalized(np.array([slope or 0.0 for slope in slopes(points)]))
    return softmax(settings.scale * softmax(pace) * -pace).tolist(), new_state
