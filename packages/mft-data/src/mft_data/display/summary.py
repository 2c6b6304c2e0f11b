"""The table of a manifest: what each task has in each split."""

from collections import Counter
from typing import Any

from mft_data.rows.split import SPLITS

COUNTS = ("conversations", "rows", "tokens", "supervised_tokens")
# Counted for a task as a whole, before its conversations were split.
LEFT_OUT = ("rejected", "duplicates", "over_limit", "contaminated", "overlong_dropped", "overlong_truncated")
# Of more tasks than these no one looks at each line.
MOST_TASKS, NUM_LARGEST, NUM_SMALLEST = 20, 10, 5
HEADER = ("task", "split", "conversations", "rows", "tokens", "supervised", "share", "fill", "rejected", "overlong")


def split_summaries(manifest: dict[str, Any]) -> list[dict[str, Any]]:
    """One object per task and split that has rows; `share` is of supervised tokens, `fill` of the rows' space."""
    summaries = []
    for task in manifest["tasks"]:
        for split in SPLITS:
            counts = task["splits"][split]
            if counts["rows"]:
                summaries.append(
                    {
                        "task": task["name"],
                        "split": split,
                        **{name: counts[name] for name in COUNTS},
                        **({"pairs": counts["pairs"]} if "pairs" in counts else {}),
                        "supervised_share": counts["supervised_tokens"] / counts["tokens"],
                        "fill": counts["tokens"] / (counts["rows"] * manifest["seq_length"]),
                        **{name: task["conversations"][name] for name in LEFT_OUT},
                    }
                )
    return summaries


def summary_table(manifest: dict[str, Any]) -> str:
    """The summaries as an aligned text table; what was left out stands once per task, duplicates only if there are.

    Of many tasks it has the largest ones and the smallest, and a line for all of them together.
    """
    summaries = split_summaries(manifest)
    extra = [
        name for name in ("duplicates", "over_limit", "contaminated") if any(summary[name] for summary in summaries)
    ]
    lines: list[tuple[str, ...]] = [(*HEADER, *(name.replace("_", " ") for name in extra))]
    num_tasks = len(manifest["tasks"])
    if num_tasks <= MOST_TASKS:
        lines += summary_lines(summaries, extra)
        return aligned(lines)
    largest, smallest = extreme_tasks(manifest)
    lines += summary_lines([summary for summary in summaries if summary["task"] in largest], extra)
    lines.append((f"... {num_tasks - len(largest) - len(smallest):,} tasks between ...", *[""] * (len(lines[0]) - 1)))
    lines += summary_lines([summary for summary in summaries if summary["task"] in smallest], extra)
    lines += summary_lines(total_summaries(manifest, summaries), extra)
    return aligned(lines) + "\n(inspect --json and --html have all tasks)"


def extreme_tasks(manifest: dict[str, Any]) -> tuple[set[str], set[str]]:
    """The names of the tasks with most tokens to train on, and of those with least."""
    by_size = sorted(manifest["tasks"], key=lambda task: -task["splits"]["train"]["tokens"])
    names = [task["name"] for task in by_size]
    return set(names[:NUM_LARGEST]), set(names[-NUM_SMALLEST:])


def total_summaries(manifest: dict[str, Any], summaries: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """One object per split, of all tasks together."""
    totals = []
    for split in SPLITS:
        own = [summary for summary in summaries if summary["split"] == split]
        if not own:
            continue
        counts = {name: sum(summary[name] for summary in own) for name in COUNTS}
        totals.append(
            {
                "task": f"all {len(manifest['tasks']):,} tasks",
                "split": split,
                **counts,
                "supervised_share": counts["supervised_tokens"] / counts["tokens"],
                "fill": counts["tokens"] / (counts["rows"] * manifest["seq_length"]),
                **{name: sum(task["conversations"][name] for task in manifest["tasks"]) for name in LEFT_OUT},
            }
        )
    return totals


def summary_lines(summaries: list[dict[str, Any]], extra: list[str]) -> list[tuple[str, ...]]:
    """The cells of some summaries; what was left out stands once per task."""
    lines: list[tuple[str, ...]] = []
    shown: set[str] = set()
    for summary in summaries:
        is_first = summary["task"] not in shown
        shown.add(summary["task"])
        dropped, truncated = summary["overlong_dropped"], summary["overlong_truncated"]
        overlong = ", ".join(f"{count} {what}" for count, what in ((dropped, "dropped"), (truncated, "cut")) if count)
        left_out = (f"{summary['rejected']:,}", overlong or "0", *(f"{summary[name]:,}" for name in extra))
        lines.append(
            (
                summary["task"],
                summary["split"],
                f"{summary['conversations']:,}",
                f"{summary['rows']:,}",
                f"{summary['tokens']:,}",
                f"{summary['supervised_tokens']:,}",
                f"{summary['supervised_share']:.1%}",
                f"{summary['fill']:.1%}",
                *(left_out if is_first else [""] * len(left_out)),
            )
        )
    return lines


def aligned(lines: list[tuple[str, ...]]) -> str:
    """The lines of a table, its columns below each other."""
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return "\n".join(align(line, widths) for line in lines)


def unused_fields_lines(manifest: dict[str, Any]) -> list[str]:
    """A line for each task with records that had fields which were not used, or one for many such tasks."""
    by_task = {task["name"]: task["unused_fields"] for task in manifest["tasks"] if task.get("unused_fields")}
    if len(by_task) > MOST_TASKS:
        total = sum(map(Counter, by_task.values()), Counter())
        by_task = {f"{len(by_task):,} tasks": dict(total.most_common())}
    return [
        f"{name}: fields not used: " + ", ".join(f"{field} ({count:,})" for field, count in fields.items())
        for name, fields in by_task.items()
    ]


def align(line: tuple[str, ...], widths: list[int]) -> str:
    """One line of a table: names to the left, numbers to the right."""
    cells = [
        cell.ljust(width) if position < 2 else cell.rjust(width)
        for position, (cell, width) in enumerate(zip(line, widths, strict=True))
    ]
    return "  ".join(cells).rstrip()
