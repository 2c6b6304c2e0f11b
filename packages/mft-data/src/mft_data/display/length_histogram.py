"""How long conversations are: percentiles, and counts in bins that are the same for every dataset."""

from itertools import pairwise

import numpy as np

# 1, 2, 3, 4, 6, 8, 12, 16, ...: two bins for every doubling, with the row lengths that people use among the borders.
BORDERS = np.array(sorted({1 << power for power in range(33)} | {3 << power for power in range(32)}), np.int64)
PERCENTILES = (50, 90, 99)
LINE_WIDTH = 80
EIGHTHS = " ▏▎▍▌▋▊▉"


def length_percentiles(lengths: np.ndarray) -> dict[str, int]:
    """`p50`, `p90`, `p99` and `max` in tokens: the smallest length that so many per cent of conversations keep to."""
    values = np.percentile(lengths, PERCENTILES, method="inverted_cdf")
    names = [f"p{percent}" for percent in PERCENTILES]
    return {**dict(zip(names, map(int, values), strict=True)), "max": int(lengths.max())}


def length_bins(lengths: np.ndarray) -> list[dict[str, int]]:
    """The bins from the shortest conversation's to the longest's: `from` and `to`, inclusive, and `conversations`."""
    counts = np.histogram(lengths, BORDERS)[0]
    used = np.flatnonzero(counts)
    borders = list(pairwise(BORDERS.tolist()))
    return [
        {"from": borders[bin_][0], "to": borders[bin_][1] - 1, "conversations": int(counts[bin_])}
        for bin_ in range(used[0], used[-1] + 1)
    ]


def format_bins(bins: list[dict[str, int]]) -> list[str]:
    """A line of at most 80 columns for each bin, its bar in proportion to the longest."""
    labels = [f"{b['from']:,}-{b['to']:,}" if b["from"] < b["to"] else f"{b['from']:,}" for b in bins]
    counts = [f"{b['conversations']:,}" for b in bins]
    label_width, count_width = max(map(len, labels)), max(map(len, counts))
    bar_width = LINE_WIDTH - label_width - count_width - 6
    most = max(b["conversations"] for b in bins)
    return [
        f"  {label:>{label_width}}  {count:>{count_width}}  {bar(b['conversations'] / most * bar_width)}".rstrip()
        for label, count, b in zip(labels, counts, bins, strict=True)
    ]


def bar(length: float) -> str:
    """A bar of so many columns, to an eighth; one above 0 is never empty."""
    eighths = max(round(length * 8), 1 if length > 0 else 0)
    return "█" * (eighths // 8) + EIGHTHS[eighths % 8].strip()
