"""Line charts as inline SVG: they fill any width, their text keeps its size, and they read without colour."""

from __future__ import annotations

import math
from dataclasses import dataclass
from html import escape
from typing import TYPE_CHECKING

from mft_train.report.curve import unbroken

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from mft_train.report.curve import Curve

HEIGHT = 10_000  # units of a chart from bottom to top; across, a unit is a step
MOST_DOTS = 40  # a curve of more points is drawn without dots
MOST_TICK_MARKS = 200
NUM_COLOURS = 8  # in the style sheet


@dataclass(frozen=True, slots=True)
class Line:
    """One curve of a chart. `style` is a class of the style sheet: raw, smooth or measured (a dot per value).

    `colour` counts from 0; None is the colour of text.
    """

    label: str
    curve: Curve
    colour: int | None
    style: str

    @property
    def paint(self) -> str:
        """Classes of the style sheet for the colour and, once the colours are used up, dashes."""
        return "ink" if self.colour is None else f"c{self.colour % NUM_COLOURS} d{self.colour // NUM_COLOURS % 3}"


@dataclass(frozen=True, slots=True)
class Marks:
    """Steps to mark in every chart of a run: ticks for checkpoints, dashed lines for resumes and interrupts."""

    last_step: int
    checkpoints: list[int]
    breaks: list[tuple[int, str]]


def line_chart(name: str, title: str, lines: Sequence[Line], marks: Marks, *, is_from_zero: bool) -> str:
    """The chart as an svg element of any width; `name` is unique on the page."""
    last_step = max(1, marks.last_step)
    low, high = value_range(lines, is_from_zero=is_from_zero)
    ticks = nice_ticks(low, high, 5)
    low, high = min(low, ticks[0]), max(high, ticks[-1])
    parts = [
        f'<svg class="chart" role="img" aria-labelledby="{name}-title {name}-desc"'
        f' data-last="{last_step}" data-low="{low!r}" data-high="{high!r}">',
        f'<title id="{name}-title">{escape(title)}</title>',
        f'<desc id="{name}-desc">{escape(describe(lines))}</desc>',
        *grid(ticks, low, high, last_step),
        *break_lines(marks, last_step),
        f'<svg class="plot" width="100%" height="100%" viewBox="0 0 {last_step} {HEIGHT}" preserveAspectRatio="none">',
        checkpoint_ticks(marks, last_step),
    ]
    scale = HEIGHT / (high - low)
    parts += [path(line, low, scale) for line in lines]
    parts.append("</svg>")
    for line in lines:
        parts += dots(line, low, high, last_step)
    return "\n".join([*parts, "</svg>"])


def value_range(lines: Iterable[Line], *, is_from_zero: bool) -> tuple[float, float]:
    """The least and greatest finite value, apart from each other; from zero if asked."""
    values = [value for line in lines for _, value in line.curve.finite] or [0.0]
    low, high = min(values), max(values)
    if is_from_zero:
        low, high = min(0.0, low), max(0.0, high)
    if high - low <= 1e-9 * max(abs(low), abs(high)) + 1e-100:
        margin = abs(high) / 10 if abs(high) > 1e-90 else 1.0
        low, high = (low if is_from_zero else low - margin), high + margin
    return low, high


def nice_ticks(low: float, high: float, count: int, least_step: float = 0.0) -> list[float]:
    """About `count` round numbers (1, 2 or 5 times a power of ten apart) that cover low to high."""
    raw = (high - low) / count
    power = 10.0 ** math.floor(math.log10(raw))
    step = max(least_step, next(power * factor for factor in (1, 2, 5, 10) if power * factor >= raw * (1 - 1e-9)))
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [index * step for index in range(first, last + 1)]


def grid(ticks: list[float], low: float, high: float, last_step: int) -> Iterable[str]:
    """Lines and labels of both axes."""
    for value in ticks:
        y = f"{100 * (high - value) / (high - low):.2f}%"
        yield f'<line class="grid" x1="0" x2="100%" y1="{y}" y2="{y}"/>'
        yield f'<text class="y" x="-8" y="{y}" dy="4">{short_number(value, ticks)}</text>'
    steps = nice_ticks(0, last_step, 5, least_step=1)
    for step in steps:
        if step <= last_step:
            x = f"{100 * step / last_step:.2f}%"
            yield f'<text class="x" x="{x}" y="100%" dy="18">{short_number(step, steps)}</text>'


def short_number(value: float, ticks: list[float]) -> str:
    """A tick's label with as many digits as tell it from its neighbours."""
    largest, step = max(abs(tick) for tick in ticks), abs(ticks[1] - ticks[0])
    if value == 0:
        return "0"
    if largest >= 1e15:
        return f"{value:.6g}"
    if largest < 1e-2:
        exponent = math.floor(math.log10(largest) + 1e-9)
        return f"{value / 10.0**exponent:.4g}e{exponent}"
    factor, unit = next((pair for pair in ((1e9, "G"), (1e6, "M"), (1e4, "k")) if largest >= pair[0]), (1.0, ""))
    factor = 1e3 if unit == "k" else factor
    digits = max(0, -math.floor(math.log10(step / factor) + 1e-9))
    return f"{value / factor:,.{digits}f}{unit}"


def path(line: Line, low: float, scale: float) -> str:
    """A curve as one path element, with a gap where values are not finite."""
    pieces = []
    for stretch in unbroken(line.curve):
        points = zip(stretch.steps, stretch.values, strict=True)
        pieces.append("M" + "L".join(f"{step} {HEIGHT - (value - low) * scale:.0f}" for step, value in points))
    label = f' data-label="{escape(line.label)}"' if line.style != "raw" else ""
    return f'<path class="{line.style} {line.paint}"{label} d="{"".join(pieces)}"/>'


def dots(line: Line, low: float, high: float, last_step: int) -> Iterable[str]:
    """A dot at every value of a measured curve, and at a lone value of any curve, which has no line."""
    points = line.curve.finite
    if (line.style == "measured" and len(points) <= MOST_DOTS) or len(points) == 1:
        for step, value in points:
            x, y = 100 * step / last_step, 100 * (high - value) / (high - low)
            yield f'<circle class="{line.paint}" cx="{x:.2f}%" cy="{y:.2f}%" r="3"/>'


def checkpoint_ticks(marks: Marks, last_step: int) -> str:
    """Short ticks on the step axis, one path element: of many checkpoints as many as can be told apart."""
    places = {step * MOST_TICK_MARKS // last_step: step for step in marks.checkpoints}
    ticks = "".join(f"M{step} {HEIGHT}V{HEIGHT * 96 // 100}" for step in places.values())
    return f'<path class="checkpoint" d="{ticks}"/>' if ticks else ""


def break_lines(marks: Marks, last_step: int) -> Iterable[str]:
    """A vertical line with a word at every resume and interrupt; words at the same step are joined."""
    words: dict[int, list[str]] = {}
    for step, word in marks.breaks[:MOST_TICK_MARKS]:
        words.setdefault(step, []).append(word)
    for step, joined in words.items():
        share = 100 * step / last_step
        anchor = "end" if share > 50 else "start"
        yield f'<line class="break" x1="{share:.2f}%" x2="{share:.2f}%" y1="0" y2="100%"/>'
        text = ", ".join(dict.fromkeys(joined))
        yield f'<text class="break {anchor}" x="{share:.2f}%" y="0" dy="11">{escape(text)}</text>'


def describe(lines: Sequence[Line]) -> str:
    """The chart in words: where each curve starts and ends."""
    sentences = []
    for line in lines:
        points = line.curve.finite
        if line.style != "raw" and points:
            (first, start), (last, end) = points[0], points[-1]
            sentences.append(f"{line.label}: {start:.4g} at step {first} to {end:.4g} at step {last}.")
    return " ".join(sentences) or "No finite value."
