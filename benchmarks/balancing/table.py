"""The tables of docs/balancers.md from the files that compare.py keeps, as Markdown on stdout.

python benchmarks/balancing/table.py RESULTS
"""

import argparse
import json
from collections import defaultdict
from pathlib import Path
from statistics import mean, stdev

from compare import ALONE, rules

# Student's t at 97.5 % for one to nine degrees of freedom.
T = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262)
REFERENCE = "equal"


def read(folder):
    """{contender: {seed: (validation curve, test losses by step)}}."""
    found = defaultdict(dict)
    for path in sorted(folder.glob("*.json")):
        document = json.loads(path.read_text())
        curves = ({int(step): losses for step, losses in document[name].items()} for name in ("validation", "test"))
        found[document["contender"]][document["seed"]] = tuple(curves)
    return found


def interval(values, style=".3f"):
    """The mean and half the width of its 95 % interval, which one value has not, in words."""
    if not values:
        return ""
    if len(values) == 1:
        return f"{values[0]:{style}}"
    return f"{mean(values):{style}} ± {T[len(values) - 2] * stdev(values) / len(values) ** 0.5:{style.lstrip('+')}}"


def chosen(run):
    """Test losses by task under each rule."""
    validation, test = run
    shared, own = rules(validation)
    return {name: test[step] for name, step in shared.items()} | {
        "best for each task": {task: test[step][task] for task, step in own.items()}
    }


def alone_losses(found):
    """{seed: {task: test loss}} of the tasks trained alone, each at its best checkpoint."""
    losses = defaultdict(dict)
    for name, runs in found.items():
        if name.startswith(ALONE):
            task = name.removeprefix(ALONE)
            for seed, run in runs.items():
                losses[seed][task] = chosen(run)["best for each task"][task]
    return {seed: found for seed, found in losses.items() if len(found) == max(map(len, losses.values()))}


def overview(found, alone):
    """Mean over tasks under each rule, the worst task over itself alone, and the change against equal shares."""
    names = ["last", "best mean", "early stop", "best for each task"]
    alone_mean = interval([mean(losses.values()) for losses in alone.values()])
    lines = [
        "| contender | seeds | " + " | ".join(names) + " | worst task / alone | against equal, best mean |",
        "|---|" + "---:|" * (len(names) + 3),
        f"| every task alone | {len(alone)} | | | | {alone_mean} | 1 | |",
    ]
    together = {name: runs for name, runs in found.items() if not name.startswith(ALONE)}
    reference = {seed: mean(chosen(run)["best mean"].values()) for seed, run in together[REFERENCE].items()}
    rows = []
    for name, runs in together.items():
        picked = {seed: chosen(run) for seed, run in runs.items()}
        cells = [interval([mean(losses[rule].values()) for losses in picked.values()]) for rule in names]
        best = {seed: losses["best mean"] for seed, losses in picked.items()}
        worst = [max(best[seed][task] / alone[seed][task] for task in best[seed]) for seed in best if seed in alone]
        changes = [mean(losses.values()) / reference[seed] - 1 for seed, losses in best.items() if seed in reference]
        text = (
            f"| {name} | {len(runs)} | " + " | ".join(cells) + f" | {interval(worst)} | {interval(changes, '+.1%')} |"
        )
        rows.append((mean(mean(losses.values()) for losses in best.values()), text))
    return "\n".join([*lines, *(text for _, text in sorted(rows))])


def by_task(found, alone):
    """Test loss of every task at its own best checkpoint, and the step of that in equal shares."""
    tasks = list(next(iter(alone.values())))
    rows = [["every task alone", *(f"{mean(losses[task] for losses in alone.values()):.3f}" for task in tasks)]]
    for name, runs in found.items():
        if not name.startswith(ALONE):
            own = [chosen(run)["best for each task"] for run in runs.values()]
            rows.append([name, *(f"{mean(losses[task] for losses in own):.3f}" for task in tasks)])
    steps = [rules(validation)[1] for validation, _ in found[REFERENCE].values()]
    rows.append(["step of the best, equal", *(f"{mean(each[task] for each in steps):.0f}" for task in tasks)])
    lines = [["contender", *tasks], ["---", *["---:"] * len(tasks)], *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("results", type=Path)
    found = read(parser.parse_args().results)
    alone = alone_losses(found)
    print(overview(found, alone), by_task(found, alone), sep="\n\n")


if __name__ == "__main__":
    main()
