"""Numbers over steps: smoothing them, and thinning them to what a picture can show."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from itertools import groupby
from operator import itemgetter


@dataclass(frozen=True, slots=True)
class Curve:
    """Values at rising steps; NaN where a value was not finite."""

    steps: list[int] = field(default_factory=list)
    values: list[float] = field(default_factory=list)

    def append(self, step: int, value: float) -> None:
        """Adds a value after the last."""
        self.steps.append(step)
        self.values.append(value)

    @property
    def finite(self) -> list[tuple[int, float]]:
        """The steps and values that are finite numbers."""
        return [(step, value) for step, value in zip(self.steps, self.values, strict=True) if math.isfinite(value)]

    @property
    def finite_values(self) -> list[float]:
        """The values that are finite numbers."""
        return [value for value in self.values if math.isfinite(value)]

    @property
    def last(self) -> float:
        """The last value, NaN without any."""
        return self.values[-1] if self.values else math.nan


def smooth(curve: Curve, half_life: float) -> Curve:
    """The exponential moving average of the finite values, without bias to its start; `half_life` is in values."""
    keep = 0.5 ** (1 / half_life)
    total, weight, values = 0.0, 0.0, []
    for value in curve.values:
        if math.isfinite(value):
            total, weight = keep * total + value, keep * weight + 1
            values.append(total / weight)
        else:
            values.append(math.nan)
    return Curve(curve.steps, values)


def unbroken(curve: Curve) -> list[Curve]:
    """The stretches of a curve between values that are not finite."""
    flags = list(map(math.isfinite, curve.values))
    if all(flags):
        return [curve] if flags else []
    points = zip(flags, curve.steps, curve.values, strict=True)
    stretches = []
    for is_finite, group in groupby(points, key=itemgetter(0)):
        if is_finite:
            _, steps, values = zip(*group, strict=True)
            stretches.append(Curve(list(steps), list(values)))
    return stretches


def thin(curve: Curve, limit: int) -> Curve:
    """At most about `limit` points of a curve that look like it, NaN between its unbroken stretches.

    Kept are the ends, the least and the greatest value of every stretch of the run: a spike of one step stays visible
    however long the run is. Gaps so many that none could be seen are closed.
    """
    stretches = unbroken(curve)
    if 4 * len(stretches) > max(limit, 4):
        stretches = [Curve(*map(list, zip(*curve.finite, strict=True)))]
    thinned = Curve()
    for stretch in stretches:
        if thinned.steps:
            thinned.append(stretch.steps[0], math.nan)
        for index in telling_points(stretch.values, limit // len(stretches)):
            thinned.append(stretch.steps[index], stretch.values[index])
    return thinned


def telling_points(values: list[float], limit: int) -> list[int]:
    """Indices of at most `limit` (4 or more) values: the ends, the least and greatest of stretches of equal length."""
    count = len(values)
    if count <= limit:
        return list(range(count))
    num_stretches = (limit - 2) // 2
    kept = {0, count - 1}
    for index in range(num_stretches):
        start, end = index * count // num_stretches, (index + 1) * count // num_stretches
        stretch = values[start:end]
        kept.add(start + stretch.index(min(stretch)))
        kept.add(start + stretch.index(max(stretch)))
    return sorted(kept)
