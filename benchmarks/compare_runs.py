"""Validation losses of several runs by task: Markdown tables on stdout and, with --svg FILE, their curves.

python benchmarks/compare_runs.py RUN... [--svg FILE]
"""

import argparse
import json
from pathlib import Path
from xml.sax.saxutils import escape

COLOURS = ("#4c78a8", "#e4572e", "#54a24b", "#b279a2")
DASHES = ("", "6 3", "2 3", "8 3 2 3")
WIDTH, HEIGHT, MARGIN = 300, 220, 46


def read_run(folder):
    """Validation losses and task weights of a run: {task: {step: value}} each."""
    losses, weights = {}, {}
    for line in (folder / "metrics.jsonl").read_text().splitlines():
        event = json.loads(line)
        kept = {"validation": (losses, "task_losses"), "train": (weights, "task_weights")}.get(event["event"])
        if kept:
            curves, name = kept
            for task, value in event[name].items():
                curves.setdefault(task, {})[event["global_step"]] = value
    return losses, weights


def table(header, rows):
    lines = [header, ["---", *["---:"] * (len(header) - 1)], *rows]
    return "\n".join("| " + " | ".join(map(str, line)) + " |" for line in lines)


def best(curve):
    """The least value of a curve and its step."""
    step = min(curve, key=curve.get)
    return f"{curve[step]:.3f} ({step})"


def summary(runs, tasks):
    """First, best and last validation loss of every task in every run, and the mean over tasks."""
    rows = []
    for name, (losses, _) in runs.items():
        mean = {step: sum(losses[task][step] for task in tasks) / len(tasks) for step in losses[tasks[0]]}
        for label, curve in [*((task, losses[task]) for task in tasks), ("mean of tasks", mean)]:
            last = max(curve)
            rise = curve[last] - min(curve.values())
            rows.append([name, label, f"{curve[0]:.3f}", best(curve), f"{curve[last]:.3f}", f"{rise:.3f}"])
    return table(["run", "task", "first", "best (step)", "last", "last - best"], rows)


def weight_table(runs, tasks):
    """Mean weight of every task in each quarter of the run."""
    rows = []
    for name, (_, weights) in runs.items():
        for task in tasks:
            values = [weights[task][step] for step in sorted(weights[task])]
            quarter = len(values) / 4
            parts = [values[int(index * quarter) : int((index + 1) * quarter)] for index in range(4)]
            rows.append([name, task, *(f"{sum(part) / len(part):.2f}" for part in parts)])
    return table(["run", "task", "1st quarter", "2nd", "3rd", "4th"], rows)


def panel(left, title, curves, low, high):
    """One chart: a line per run, losses from `low` to `high`."""
    last = max(step for curve in curves.values() for step in curve)
    tall, wide = HEIGHT - 2 * MARGIN, WIDTH - MARGIN - 16

    def place(step, value):
        return f"{left + MARGIN + wide * step / last:.1f},{MARGIN + tall * (high - value) / (high - low):.1f}"

    yield f'<text x="{left + MARGIN}" y="{MARGIN - 12}" font-weight="bold">{escape(title)}</text>'
    for value in (low, (low + high) / 2, high):
        x, y = place(0, value).split(",")
        yield f'<path d="M{x} {y}h{wide}" stroke="#8886"/>'
        yield f'<text x="{float(x) - 6}" y="{float(y) + 4}" text-anchor="end">{value:.2f}</text>'
    for step in (0, last):
        x = place(step, low).split(",")[0]
        yield f'<text x="{x}" y="{HEIGHT - MARGIN + 18}" text-anchor="middle">{step}</text>'
    for (_, curve), colour, dash in zip(curves.items(), COLOURS, DASHES, strict=False):
        points = " ".join(place(step, min(value, high)) for step, value in sorted(curve.items()))
        yield f'<polyline points="{points}" fill="none" stroke="{colour}" stroke-width="2" stroke-dasharray="{dash}"/>'


def chart(runs, tasks):
    """The validation curves of every task side by side, from the third validation on: the first two are far above."""
    later = {name: {t: dict(sorted(losses[t].items())[2:]) for t in tasks} for name, (losses, _) in runs.items()}
    parts = []
    for index, task in enumerate(tasks):
        curves = {name: curves[task] for name, curves in later.items()}
        values = [value for curve in curves.values() for value in curve.values()]
        parts += panel(index * WIDTH, task, curves, min(values), max(values))
    for index, (name, colour, dash) in enumerate(zip(runs, COLOURS, DASHES, strict=False)):
        x = MARGIN + index * 130
        parts.append(
            f'<path d="M{x} {HEIGHT - 6}h28" stroke="{colour}" stroke-width="2" stroke-dasharray="{dash}"/>'
            f'<text x="{x + 34}" y="{HEIGHT - 2}">{escape(name)}</text>'
        )
    size = f'width="{len(tasks) * WIDTH}" height="{HEIGHT}"'
    style = "<style>text{font:12px sans-serif;fill:#777}</style>"
    return f'<svg xmlns="http://www.w3.org/2000/svg" {size}>{style}{"".join(parts)}</svg>\n'


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("runs", nargs="+", type=Path)
    parser.add_argument("--svg", type=Path)
    arguments = parser.parse_args()
    runs = {folder.name: read_run(folder) for folder in arguments.runs}
    tasks = list(next(iter(runs.values()))[0])
    print(summary(runs, tasks), weight_table(runs, tasks), sep="\n\n")
    if arguments.svg:
        arguments.svg.write_text(chart(runs, tasks))


if __name__ == "__main__":
    main()
