"""How fast each task's loss changes: least-squares slopes over its last measurements, and softmax."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Sequence

    Points = Sequence[list[float]]


def with_measurements(
    points: Sequence[Points], update: int, values: Sequence[float | None], length: int
) -> list[list[list[float]]]:
    """The last `length` measurements of every task, those of this update included: [update, value] each.

    A task that is not measured now, None among the `values`, keeps what it has.
    """
    pairs = zip(points, values, strict=True)
    return [[*own, *([] if value is None else [[update, value]])][-length:] for own, value in pairs]


def slopes(points: Sequence[Points]) -> list[float | None]:
    """The slope of each task's least-squares line through its points, per update; None for less than two points.

    A constant loss has a slope of exactly 0.
    """
    found: list[float | None] = []
    for own in points:
        if len(own) < 2:
            found.append(None)
            continue
        updates, losses = np.array(own, dtype=np.float64).T
        offsets = updates - updates.mean()
        found.append(float(offsets @ (losses - losses[0]) / (offsets @ offsets)))
    return found


def normalized(values: np.ndarray) -> np.ndarray:
    """The values over the mean of their magnitudes; zeros if all are zero."""
    total = np.abs(values).sum()
    return values / total * len(values) if total > 0 else np.zeros_like(values)


def softmax(values: np.ndarray) -> np.ndarray:
    """Exponentials of the values over their sum."""
    exponentials = np.exp(values - values.max())
    return exponentials / exponentials.sum()
