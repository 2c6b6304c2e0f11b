"""How fast each task's loss changes: least-squares slopes over a history of updates with gaps, and softmax."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Sequence


def slopes(history: Sequence[Sequence[float | None]]) -> list[float | None]:
    """The slope of each task's least-squares line, per update; None for a task seen less than twice.

    `history[u][k]` is task k's loss at update u, None if it was not measured: a gap leaves the line of the other points
    as it is. A constant loss has a slope of exactly 0.
    """
    found: list[float | None] = []
    for losses in np.array(history, dtype=np.float64).T:
        (updates,) = np.nonzero(~np.isnan(losses))
        if len(updates) < 2:
            found.append(None)
            continue
        offsets = updates - updates.mean()
        rises = losses[updates] - losses[updates[0]]
        found.append(float(offsets @ rises / (offsets @ offsets)))
    return found


def normalized(values: np.ndarray) -> np.ndarray:
    """The values over the mean of their magnitudes; zeros if all are zero."""
    total = np.abs(values).sum()
    return values / total * len(values) if total > 0 else np.zeros_like(values)


def softmax(values: np.ndarray) -> np.ndarray:
    """Exponentials of the values over their sum."""
    exponentials = np.exp(values - values.max())
    return exponentials / exponentials.sum()
