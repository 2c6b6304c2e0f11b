"""The table of a manifest: what each task has in each split."""

from typing import Any

from mft_data.split import SPLITS

HEADER = ("task", "split", "conversations", "rows", "tokens", "supervised", "share", "fill", "rejected", "overlong")


def split_summaries(manifest: dict[str, Any]) -> list[dict[str, Any]]:
    """One object per task and split that has rows; `share` is of supervised tokens, `fill` of the rows' space."""
    summaries = []
    for task in manifest["tasks"]:
        read = task["conversations"]
        for split in SPLITS:
            counts = task["splits"][split]
            if counts["rows"]:
                summaries.append(
                    {
                        "task": task["name"],
                        "split": split,
                        **counts,
                        "supervised_share": counts["supervised_tokens"] / counts["tokens"],
                        "fill": counts["tokens"] / (counts["rows"] * manifest["seq_length"]),
                        "rejected": read["rejected"],
                        "overlong_dropped": read["overlong_dropped"],
                        "overlong_truncated": read["overlong_truncated"],
                    }
                )
    return summaries


def summary_table(manifest: dict[str, Any]) -> str:
    """The summaries as an aligned text table; what was rejected or overlong stands once per task."""
    lines = [HEADER]
    shown: set[str] = set()
    for summary in split_summaries(manifest):
        is_first = summary["task"] not in shown
        shown.add(summary["task"])
        dropped, truncated = summary["overlong_dropped"], summary["overlong_truncated"]
        overlong = ", ".join(f"{count} {what}" for count, what in ((dropped, "dropped"), (truncated, "cut")) if count)
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
                f"{summary['rejected']:,}" if is_first else "",
                (overlong or "0") if is_first else "",
            )
        )
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return "\n".join(align(line, widths) for line in lines)


def align(line: tuple[str, ...], widths: list[int]) -> str:
    """One line of a table: names to the left, numbers to the right."""
    cells = [
        cell.ljust(width) if position < 2 else cell.rjust(width)
        for position, (cell, width) in enumerate(zip(line, widths, strict=True))
    ]
    return "  ".join(cells).rstrip()
