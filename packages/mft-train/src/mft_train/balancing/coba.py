"""CoBa, the convergence balancer: slow tasks gain weight while all converge, diverging tasks lose it.

Source: CoBa, arXiv:2410.06741. Where the paper leaves a case open, the docstrings say what is done. Slopes count from
the end of the warm-up on: those of the first few noisy losses are so large that they would hold DF at 0 for good.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from mft_train.balancing.slopes import normalized, slopes, softmax

if TYPE_CHECKING:
    from collections.abc import Sequence

    from mft_train.config.config import CobaConfig

# A first loss is taken to be at least this many nats: the ratio to it stays finite.
SMALLEST_FIRST_LOSS = 1e-8


def coba(
    state: dict[str, Any], probe_losses: Sequence[float | None], settings: CobaConfig
) -> tuple[list[float], dict[str, Any]]:
    """Each task's share of the weight, uniform during warm-up, and the state after this update.

    The state holds each task's `first` loss, the last `history_length` loss `ratios` to it, and the number of
    `updates`; from the end of the warm-up on also the last `history_length` `slopes` of the ratios, and the slope of
    the `worst` task at every update.
    """
    num_tasks, length = len(probe_losses), settings.history_length
    first: list[float | None] = [
        loss if known is None else known
        for known, loss in zip(state.get("first", [None] * num_tasks), probe_losses, strict=True)
    ]
    ratios = [
        None if loss is None or start is None else loss / max(start, SMALLEST_FIRST_LOSS)
        for loss, start in zip(probe_losses, first, strict=True)
    ]
    history = [*state.get("ratios", []), ratios][-length:]
    new_state: dict[str, Any] = {"first": first, "ratios": history, "updates": state.get("updates", 0) + 1}
    equal = [1 / num_tasks] * num_tasks
    if new_state["updates"] <= settings.warmup_updates:
        return equal, new_state
    current = slopes(history)
    known_slopes = [slope for slope in current if slope is not None]
    new_state["slopes"] = [*state.get("slopes", []), current][-length:]
    new_state["worst"] = [*state.get("worst", []), *([max(known_slopes)] if known_slopes else [])]
    if not known_slopes:
        return equal, new_state
    factor = divergence_factor(new_state["worst"], settings.tau)
    relative, absolute = relative_scores(current), absolute_scores(new_state["slopes"])
    return (factor * relative + (1 - factor) * absolute).tolist(), new_state


def relative_scores(current: Sequence[float | None]) -> np.ndarray:
    """RCS: the softmax over tasks of K a_k / sum_j |a_j|; the slower a task converges, the more it gets.

    A slope that is not known yet counts as 0.
    """
    return softmax(normalized(np.array([slope or 0.0 for slope in current])))


def absolute_scores(slope_history: Sequence[Sequence[float | None]]) -> np.ndarray:
    """ACS: the softmax over tasks of -N a_k / sum of |a_k| over the last N updates; a diverging task gets the least.

    N is the number of slopes of the task in the window. A task without one, or with zeros only, counts as 0.
    """
    exponents = []
    for own in zip(*slope_history, strict=True):
        known = np.array([slope for slope in own if slope is not None])
        exponents.append(-normalized(known)[-1] if len(known) else 0.0)
    return softmax(np.array(exponents))


def divergence_factor(worst: Sequence[float], tau: float) -> float:
    """DF: t times the last entry of the softmax over updates of -tau t a_max(i) / sum_i |a_max(i)|, at most 1.

    `worst` is the largest slope of any task at each of the t updates. 1 leaves the weights to RCS, 0 to ACS.
    """
    return min(1.0, float(len(worst) * softmax(-tau * normalized(np.array(worst)))[-1]))
