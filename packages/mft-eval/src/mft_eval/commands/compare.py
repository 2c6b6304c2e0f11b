"""Comparing the results of several models with the first."""

from dataclasses import asdict
from typing import Any

from mft_eval.commands.counted import counted
from mft_eval.scoring.comparison import compare as compare_two
from mft_eval.scoring.reading import read_results
from mft_eval.scoring.results import scores
from mft_eval.scoring.tables import TABLES

SIGNIFICANT = 0.05


def compare(paths: tuple[str, ...], k: int) -> dict[str, Any]:
    """Every model's score, and each of the others' comparison with the first's; models are called by their paths."""
    every = {path: read_results(path) for path in paths}
    first = every[paths[0]]
    comparisons = {path: asdict(compare_two(first, every[path], k)) for path in paths[1:]}
    models = {}
    for path, results in every.items():
        found = scores(results["problems"], [k])
        name = f"pass@{k}"
        models[path] = {"num_problems": found["num_problems"], name: found["pass_at_k"][name]}
        models[path] |= {"interval": found["intervals"][name], "num_untrusted": results["num_untrusted"]}
    return {"k": k, "models": models, "against": paths[0], "comparisons": comparisons}


def shown_chance(p_value: float) -> str:
    """What follows the letter p: its value to four digits, which is never nought."""
    return "< 0.0001" if p_value < 0.0001 else f"= {p_value:.4f}"


def show_comparison(compared: dict[str, Any], style: str) -> str:
    """The comparison as a table (a key of TABLES), then wins and losses."""
    name = f"pass@{compared['k']}"
    rows = []
    for path, model in compared["models"].items():
        interval = model["interval"]
        row = [path, f"{model[name]:.4f}", f"{interval['low']:.4f} to {interval['high']:.4f}"]
        found = compared["comparisons"].get(path)
        if found is None:
            rows.append([*row, "", "", "", ""])
        else:
            sign = f"{found['difference']:+.4f}"
            p_value = f"{shown_chance(found['p_value']).removeprefix('= ')} ({found['test']})"
            rows.append([*row, sign, p_value, str(len(found["wins"])), str(len(found["losses"]))])
    head = ["results", name, "95 % interval", "difference", "p", "wins", "losses"]
    text = TABLES[style](head, rows)
    for path, found in compared["comparisons"].items():
        verdict = "a difference" if found["p_value"] < SIGNIFICANT else "undecided: chance alone may do this"
        text += f"\n{path} against {compared['against']} on {counted(found['num_problems'], 'problem')}: {verdict}\n"
        text += f"wins: {', '.join(found['wins']) or 'none'}\nlosses: {', '.join(found['losses']) or 'none'}\n"
    return text
