"""The table of a manifest: what each task has in each split."""

from typing import Any

from mft_data.rows.split import SPLITS

COUNTS = ("conversations", "rows", "tokens", "supervised_tokens")
# Counted for a task as a whole, before its conversations were split.
LEFT_OUT = ("rejected", "duplicates", "over_limit", "contaminated", "overlong_dropped", "overlong_truncated")
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
    """The summaries as an aligned text table; what was left out stands once per task, duplicates only if there are."""
    summaries = split_summaries(manifest)
    extra = [
        name for name in ("duplicates", "over_limit", "contaminated") if any(summary[name] for summary in summaries)
    ]
    lines = [(*HEADER, *(name.replace("_", " ") for name in extra))]
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
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return "\n".join(align(line, widths) for line in lines)


def unused_fields_lines(manifest: dict[str, Any]) -> list[str]:
    """A line for each task with records that had fields which were not used."""
    return [
        f"{task['name']}: fields not used: "
        + ", ".join(f"{name} ({count:,})" for name, count in task["unused_fields"].items())
        for task in manifest["tasks"]
        if task.get("unused_fields")
    ]


def align(line: tuple[str, ...], widths: list[int]) -> str:
    """One line of a table: names to the left, numbers to the right."""
    cells = [
        cell.ljust(width) if position < 2 else cell.rjust(width)
        for position, (cell, width) in enumerate(zip(line, widths, strict=True))
    ]
    return "  ".join(cells).rstrip()
