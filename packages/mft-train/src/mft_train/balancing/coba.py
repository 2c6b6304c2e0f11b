"""CoBa, the convergence balancer: slow tasks gain weight while all converge, diverging tasks lose it.

Source: CoBa, arXiv:2410.06741. Where the paper leaves a case open, the docstrings say what is done. Slopes count from
the end of the warm-up on: those of the first few noisy losses are so large that they would hold DF at 0 for good.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from mft_train.balancing.slopes import normalized, slopes, softmax, with_measurements

if TYPE_CHECKING:
    from collections.abc import Sequence

    from mft_train.config.loss_config import CobaConfig

# A first loss is taken to be at least this many nats: the ratio to it stays finite.
SMALLEST_FIRST_LOSS = 1e-8
# DF looks at all updates in the paper; at so many here, so that neither a checkpoint nor an update grows for ever.
WORST_LENGTH = 1000


def coba(
    state: dict[str, Any], probe_losses: Sequence[float | None], settings: CobaConfig
) -> tuple[list[float], dict[str, Any]]:
    """Each task's share of the weight, uniform during warm-up, and the state after this update.

    The state holds each task's `first` loss, its last `history_length` measurements of the ratio to it as `points`, how
    often it was `measured`, and the number of `updates`; from the end of the warm-up on also each task's last
    `history_length` `slopes`, and the slope of the `worst` task at the last WORST_LENGTH updates.
    """
    num_tasks, updates = len(probe_losses), state.get("updates", 0) + 1
    first: list[float | None] = [
        loss if known is None else known
        for known, loss in zip(state.get("first", [None] * num_tasks), probe_losses, strict=True)
    ]
    ratios = [
        None if loss is None or start is None else loss / max(start, SMALLEST_FIRST_LOSS)
        for loss, start in zip(probe_losses, first, strict=True)
    ]
    points = with_measurements(state.get("points", [[]] * num_tasks), updates, ratios, settings.history_length)
    measured = [
        count + (loss is not None)
        for count, loss in zip(state.get("measured", [0] * num_tasks), probe_losses, strict=True)
    ]
    new_state: dict[str, Any] = {"first": first, "points": points, "measured": measured, "updates": updates}
    equal = [1 / num_tasks] * num_tasks
    # A slope needs two measurements, and the worst of only some tasks would be compared with the worst of all.
    if min(filter(None, measured), default=0) <= max(1, settings.warmup_updates):
        return equal, new_state
    current = slopes(points)
    new_state["slopes"] = [
        [*own, *([] if slope is None or loss is None else [slope])][-settings.history_length :]
        for own, slope, loss in zip(state.get("slopes", [[]] * num_tasks), current, probe_losses, strict=True)
    ]
    worst = max(slope for slope in current if slope is not None)
    new_state["worst"] = [*state.get("worst", []), worst][-WORST_LENGTH:]
    factor = divergence_factor(new_state["worst"], settings.tau)
    relative, absolute = relative_scores(current), absolute_scores(new_state["slopes"])
    return (factor * relative + (1 - factor) * absolute).tolist(), new_state


def relative_scores(current: Sequence[float | None]) -> np.ndarray:
    """RCS: the softmax over tasks of K a_k / sum_j |a_j|; the slower a task converges, the more it gets.

    A slope that is not known yet counts as 0.
    """
    return softmax(normalized(np.array([slope or 0.0 for slope in current])))


def absolute_scores(slope_history: Sequence[Sequence[float]]) -> np.ndarray:
    """ACS: the softmax over tasks of -N a_k / sum of |a_k| over its last N slopes; a diverging task gets the least.

    `slope_history[k]` are the slopes of task k, the latest last. A task without one, or with zeros only, counts as 0.
    """
    return softmax(np.array([-normalized(np.array(own))[-1] if len(own) else 0.0 for own in slope_history]))


def divergence_factor(worst: Sequence[float], tau: float) -> float:
    """DF: t times the last entry of the softmax over updates of -tau t a_max(i) / sum_i |a_max(i)|, at most 1.

    `worst` is the largest slope of any task at each of the t updates. 1 leaves the weights to RCS, 0 to ACS.
    """
    return min(1.0, float(len(worst) * softmax(-tau * normalized(np.array(worst)))[-1]))
