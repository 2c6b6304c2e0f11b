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
# What most trainers do, and what balancers start from.
REFERENCES = ("by size", "equal")
RULES = ("last", "best mean", "best worst", "early stop", "best for each task")


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


def means(found, alone):
    """Mean over tasks under each rule, and its change at the best mean against the references, paired by seed."""
    references = [name for name in REFERENCES if name in found]
    lines = table_head(["contender", "seeds", *RULES, *(f"against {name}" for name in references)])
    if alone:
        at_best = interval([mean(losses.values()) for losses in alone.values()])
        lines.append(f"| every task alone | {len(alone)} |" + " |" * (len(RULES) - 1) + f" {at_best} |" + " |" * 2)
    at_best = {
        name: {seed: mean(chosen(run)["best mean"].values()) for seed, run in runs.items()}
        for name, runs in together(found).items()
    }
    for name in sorted(at_best, key=lambda name: mean(at_best[name].values())):
        picked = [chosen(run) for run in found[name].values()]
        cells = [interval([mean(losses[rule].values()) for losses in picked]) for rule in RULES]
        for reference in references:
            pairs = [(loss, at_best[reference].get(seed)) for seed, loss in at_best[name].items()]
            cells.append(interval([loss / other - 1 for loss, other in pairs if other], "+.1%"))
        lines.append(f"| {name} | {len(picked)} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def worst_tasks(found, alone):
    """The largest ratio of a task's loss to that of the task alone under each rule, contenders by that of the last."""
    rows = []
    for name, runs in together(found).items():
        picked = [(chosen(run), alone[seed]) for seed, run in runs.items() if seed in alone]
        ratios = {
            rule: [max(losses[rule][task] / own[task] for task in own) for losses, own in picked] for rule in RULES
        }
        if picked:
            rows.append((mean(ratios["last"]), [name, *(interval(ratios[rule]) for rule in RULES)]))
    return "\n".join(
        [*table_head(["contender", *RULES]), *("| " + " | ".join(cells) + " |" for _, cells in sorted(rows))]
    )


def together(found):
    """The contenders that train all tasks."""
    return {name: runs for name, runs in found.items() if not name.startswith(ALONE)}


def table_head(names):
    """The first two lines of a table of figures."""
    return ["| " + " | ".join(names) + " |", "|---|" + "---:|" * (len(names) - 1)]


def by_task(found, alone):
    """Test loss of every task at its own best checkpoint, and the step of that in equal shares."""
    tasks = sorted(next(iter(next(iter(together(found).values())).values()))[0][0])
    rows = []
    if alone:
        rows.append(["every task alone", *(f"{mean(losses[task] for losses in alone.values()):.3f}" for task in tasks)])
    for name, runs in together(found).items():
        own = [chosen(run)["best for each task"] for run in runs.values()]
        rows.append([name, *(f"{mean(losses[task] for losses in own):.3f}" for task in tasks)])
    for name in REFERENCES[-1:] if REFERENCES[-1] in found else list(together(found)):
        steps = [rules(validation)[1] for validation, _ in found[name].values()]
        rows.append([f"step of the best, {name}", *(f"{mean(each[task] for each in steps):.0f}" for task in tasks)])
    return "\n".join([*table_head(["contender", *tasks]), *("| " + " | ".join(row) + " |" for row in rows)])


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("results", type=Path)
    found = read(parser.parse_args().results)
    alone = alone_losses(found)
    tables = [means(found, alone), *([worst_tasks(found, alone)] if alone else []), by_task(found, alone)]
    print(*tables, sep="\n\n")


if __name__ == "__main__":
    main()
