"""Looks into a finished dataset: how long its conversations are, and what one row holds."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import orjson

from mft_data.dataset.dataset_dir import read_manifest
from mft_data.dataset.mds import CHOSEN, REJECTED, SEGMENT_SIDES, SEGMENT_WEIGHTS, read_row
from mft_data.dataset.shard_columns import ShardError, read_segment_lengths
from mft_data.display.length_histogram import format_bins, length_bins, length_percentiles
from mft_data.display.row_display import format_segment, readable_segment
from mft_data.display.summary import split_summaries, summary_table
from mft_data.encoding.tokenizer import open_tokenizer
from mft_data.errors import DataError, plural
from mft_data.rows.split import SPLITS

if TYPE_CHECKING:
    from pathlib import Path

# Of more tasks than these no one looks at each histogram.
MOST_HISTOGRAMS = 20
SIDE_NAMES = {CHOSEN: "chosen", REJECTED: "rejected"}
# Tokens of every conversation of a task and split that has any, both of a pair.
Lengths = dict[tuple[str, str], np.ndarray]


def dataset_text(dataset_dir: Path, *, as_json: bool) -> str:
    """What a dataset holds, for reading or as JSON; raises DataError."""
    manifest = read_manifest(dataset_dir)
    lengths = load_lengths(dataset_dir, manifest)
    return orjson.dumps(dataset_summaries(manifest, lengths)).decode() if as_json else format_dataset(manifest, lengths)


def row_text(dataset_dir: Path, task: str, split: str, row: int, *, as_json: bool) -> str:
    """One row, for reading or as JSON; raises DataError."""
    shown = load_row(dataset_dir, task, split, row)
    return orjson.dumps(shown).decode() if as_json else format_row(shown)


def load_lengths(dataset_dir: Path, manifest: dict[str, Any]) -> Lengths:
    """The length of every conversation in the dataset; raises DataError."""
    lengths = {}
    for task in manifest["tasks"]:
        for split in SPLITS:
            expected = task["splits"][split]["conversations"] + task["splits"][split].get("pairs", 0)
            if not expected:
                continue
            stream_dir = dataset_dir / split / task["name"]
            try:
                found = read_segment_lengths(stream_dir)
                if len(found) != expected:
                    raise ShardError(
                        f"{len(found)} {plural(len(found), 'conversation')} instead of the manifest's {expected}"
                    )
            except ShardError as error:
                what = f"the rows are damaged ({error})"
                raise DataError(what, where=str(stream_dir), fix="see what else `mft-data verify` finds") from error
            lengths[task["name"], split] = found
    return lengths


def dataset_summaries(manifest: dict[str, Any], lengths: Lengths) -> list[dict[str, Any]]:
    """The counts of each task and split, with the percentiles and bins of its conversations' lengths."""
    return [
        {
            **summary,
            "lengths": length_percentiles(lengths[summary["task"], summary["split"]]),
            "histogram": length_bins(lengths[summary["task"], summary["split"]]),
        }
        for summary in split_summaries(manifest)
    ]


def format_dataset(manifest: dict[str, Any], lengths: Lengths) -> str:
    """The table of counts, then for each task the percentiles of each split and a histogram of both together.

    Of many tasks it is one histogram of all of them.
    """
    blocks = [summary_table(manifest)]
    for block in histogram_blocks(manifest, lengths):
        percentiles = block["percentiles"]
        names = ("p50", "p90", "p99", "max")
        widths = {name: max(len(f"{row[name]:,}") for row in percentiles.values()) for name in names}
        lines = [f"{block['title']}: tokens per conversation"]
        for split, row in percentiles.items():
            cells = "   ".join(f"{name} {row[name]:>{width},}" for name, width in widths.items())
            lines.append(f"  {split:<10}  {cells}")
        blocks.append("\n".join([*lines, "", *format_bins(block["bins"])]))
    return "\n\n".join(blocks)


def histogram_blocks(manifest: dict[str, Any], lengths: Lengths) -> list[dict[str, Any]]:
    """`title`, `percentiles` of each split and `bins` of both together, for each task or for all of many."""
    blocks = []
    groups = [(task["name"], [task["name"]]) for task in manifest["tasks"]]
    if len(groups) > MOST_HISTOGRAMS:
        groups = [(f"all {len(groups):,} tasks together (--json has those of each)", [name for name, _ in groups])]
    for title, names_of_tasks in groups:
        own = {
            split: np.concatenate(found)
            for split in SPLITS
            if (found := [lengths[name, split] for name in names_of_tasks if (name, split) in lengths])
        }
        percentiles = {split: length_percentiles(values) for split, values in own.items()}
        bins = length_bins(np.concatenate(list(own.values())))
        blocks.append({"title": title, "percentiles": percentiles, "bins": bins})
    return blocks


def load_row(dataset_dir: Path, task_name: str, split: str, row: int) -> dict[str, Any]:
    """One row for reading; `start` of each of its segments is the position of its first token in the row.

    Raises DataError.
    """
    manifest = read_manifest(dataset_dir)
    tasks = {task["name"]: task for task in manifest["tasks"]}
    if task_name not in tasks:
        raise DataError(f'there is no task "{task_name}"', where=str(dataset_dir), fix=f"use one of {', '.join(tasks)}")
    num_rows = tasks[task_name]["splits"][split]["rows"]
    if row >= num_rows:
        what = f'task "{task_name}" has {num_rows} {split} {plural(num_rows, "row")}'
        raise DataError(what, fix="rows count from 0")
    sample = read_row(dataset_dir / split / task_name, row)
    tokenizer = open_tokenizer(dataset_dir / "tokenizer")
    ends = np.cumsum(sample["segment_lengths"])
    starts = ends - sample["segment_lengths"]
    beside: list[dict[str, Any]] = [{} for _ in ends]
    for entry, side in zip(beside, sample.get(SEGMENT_SIDES, ()), strict=False):
        entry |= {"side": SIDE_NAMES[int(side)]} if int(side) in SIDE_NAMES else {}
    for entry, weight in zip(beside, sample.get(SEGMENT_WEIGHTS, ()), strict=False):
        entry["weight"] = float(weight)
    return {
        "task": task_name,
        "task_id": sample["task_id"],
        "split": split,
        "row": row,
        "num_rows": num_rows,
        "num_tokens": len(sample["input_ids"]),
        "seq_length": manifest["seq_length"],
        "segments": [
            {
                "start": start,
                **entry,
                **readable_segment(tokenizer, sample["input_ids"][start:end], sample["loss_mask"][start:end]),
            }
            for start, end, entry in zip(starts.tolist(), ends.tolist(), beside, strict=True)
        ],
    }


def format_row(row: dict[str, Any]) -> str:
    """A row for reading: what it is, then its segments, each with its place in the row and its position ids."""
    segments = row["segments"]
    supervised = sum(sum(segment["loss_mask"]) for segment in segments)
    lines = [
        f"task {row['task']} (task_id {row['task_id']}), {row['split']} row {row['row']} of {row['num_rows']}: "
        f"{row['num_tokens']} of {row['seq_length']} tokens, {supervised} supervised"
    ]
    for number, segment in enumerate(segments, start=1):
        start, num_tokens = segment["start"], len(segment["input_ids"])
        heading = (
            f"segment {number} of {len(segments)}: tokens {start}-{start + num_tokens - 1}, "
            f"position_ids 0-{num_tokens - 1}, {sum(segment['loss_mask'])} supervised"
        )
        if "side" in segment:
            heading = f"{segment['side']}, {heading}"
        if "weight" in segment:
            heading += f", weight {segment['weight']:g}"
        lines.append(format_segment(heading, segment))
    return "\n".join(lines)
