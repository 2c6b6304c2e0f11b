"""What a person is told of results, in a few lines."""

from typing import Any

from mft_eval.commands.counted import counted, verb


def isolation_notes(results: dict[str, Any]) -> list[str]:
    """What is to be said first where programs were not behind the whole sandbox."""
    settings = results["settings"]
    if settings["walls"] == "none":
        return [
            "WARNING: NO SANDBOX (--isolation none): programs could do and forge anything, no pass is to be trusted"
        ]
    missing = settings["missing_layers"]
    return [f"best-effort isolation by {settings['walls']}, without: {', '.join(missing)}"] if missing else []


def summary(results: dict[str, Any]) -> str:
    """Scores with their intervals, counts of verdicts, and whatever makes the scores less than they seem."""
    lines = isolation_notes(results)
    for name, value in results["pass_at_k"].items():
        interval = results["intervals"][name]
        lines.append(f"{name}: {value:.4f} ({interval['low']:.4f} to {interval['high']:.4f})")
    if results["base"]:
        lines += [f"{name}, base tests alone: {value:.4f}" for name, value in results["base"]["pass_at_k"].items()]
    lines += [f"{name}: {value:.4f}" for name, value in results["measures"].items()]
    counts = ", ".join(f"{verdict} {count}" for verdict, count in results["verdicts"].items() if count)
    lines.append(f"{counted(len(results['problems']), 'problem')}: {counts}")
    if results["num_missing"]:
        count = results["num_missing"]
        lines.append(f"{counted(count, 'problem')} without a generation {verb(count, 'was', 'were')} left out")
    if results["broken"]:
        names = ", ".join(problem["problem_id"] for problem in results["broken"])
        count = len(results["broken"])
        left_out = f"{verb(count, 'was', 'were')} left out: {names}"
        lines.append(f"{counted(count, 'problem')} whose own reference fails {left_out}")
    if results["num_untrusted"]:
        lines.append(f"{results['num_untrusted']} passed where a program could have forged it: see untrusted")
    if results["verdicts"]["harness-error"]:
        lines.append("a harness-error is no fault of the program's, yet counts as not passed: see each detail")
    return "".join(f"{line}\n" for line in lines)
