"""Finished chunks joined into the streams of a dataset."""

from __future__ import annotations

import shutil
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import orjson

from mft_data.dataset.dataset_dir import REJECTS, write_manifest, write_rejects
from mft_data.dataset.mds import ShardWriter, decode_sample, encode_sample
from mft_data.encoding.tokenizer import tokenizer_sha256
from mft_data.errors import DataError
from mft_data.execution.chunk_store import chunk_dir, finished_chunk
from mft_data.execution.encode_chunk import ChunkResult, Counts, Extreme, SplitCounts, read_samples
from mft_data.reading.records import Reject
from mft_data.reading.sources import file_sha256
from mft_data.rows.split import SPLITS

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path


@dataclass(slots=True)
class TaskStreams:
    """What a task of the dataset holds."""

    counts: Counts = field(default_factory=Counts)
    splits: dict[str, SplitCounts] = field(default_factory=lambda: {split: SplitCounts() for split in SPLITS})
    index_sha256: dict[str, str | None] = field(default_factory=dict)
    file_sha256: dict[str, str] = field(default_factory=dict)

    def split_entry(self, split: str) -> dict[str, Any]:
        """The manifest's entry of one split."""
        return {**asdict(self.splits[split]), "index_sha256": self.index_sha256[split]}


def assemble_dataset(
    dataset_dir: Path, document: bytes, chunks_dirs: dict[int, Path], tokenizer_dir: Path
) -> dict[str, Any]:
    """Writes a whole dataset from the finished chunks of a build, and returns its manifest; raises DataError.

    `document` is the build's plan; `chunks_dirs` says for each chunk, by index, in which store it lies.
    """
    shutil.rmtree(dataset_dir, ignore_errors=True)
    dataset_dir.mkdir()
    shutil.copytree(tokenizer_dir, dataset_dir / "tokenizer")
    plan = orjson.loads(document)
    facts, sources = plan["manifest"], plan["sources"]
    results = [
        (chunk_dir(chunks_dirs[index], index), finished_chunk(chunks_dirs[index], index))
        for index in sorted(chunks_dirs)
    ]
    tasks = []
    for task_id, task in enumerate(plan["settings"]["tasks"]):
        own = [(path, result) for path, result in results if result.task == task]
        own_sources = [source for source in sources if source["task"] == task]
        needs_validation = facts["validation_fraction"] > 0 and len(own_sources) == 1
        streams = assemble_task(dataset_dir, task, facts["columns"], own, needs_validation)
        if not any(counts.conversations for counts in streams.splits.values()):
            raise DataError(f'task "{task}" has no conversations to train on ({describe(streams.counts)})')
        tasks.append(task_entry(task, task_id, own_sources, streams))
    write_rejects(dataset_dir, [Reject(*reject) for _, result in results for reject in result.rejects])
    manifest = {
        **facts,
        "tokenizer_sha256": tokenizer_sha256(dataset_dir / "tokenizer"),
        "tokenizer_files": {path.name: file_sha256(path) for path in sorted((dataset_dir / "tokenizer").iterdir())},
        "rejects_sha256": file_sha256(dataset_dir / REJECTS),
        "tasks": tasks,
    }
    write_manifest(dataset_dir, manifest)
    return manifest


def task_entry(task: str, task_id: int, sources: list[dict[str, Any]], streams: TaskStreams) -> dict[str, Any]:
    """The manifest's entry of one task."""
    return {
        "name": task,
        "task_id": task_id,
        "sources": [
            {
                "file": file["file"],
                "split": source["split"],
                "size_bytes": file["size_bytes"],
                "sha256": streams.file_sha256[f"{source['split']}/{file['file']}"],
            }
            for source in sources
            for file in source["files"]
        ],
        "conversations": asdict(streams.counts),
        "splits": {split: streams.split_entry(split) for split in SPLITS},
    }


def describe(counts: Counts) -> str:
    """The counts in words, for an error: how many were read, and what became of them."""
    named = asdict(counts).items()
    return ", ".join(f"{count} {name.replace('_', ' ')}" for name, count in named if count or name == "read")


def assemble_task(
    dataset_dir: Path,
    task: str,
    columns: dict[str, str],
    chunks: Sequence[tuple[Path, ChunkResult]],
    needs_validation: bool,
) -> TaskStreams:
    """Writes the streams of one task from its chunks in order.

    `needs_validation`: if there are two different conversations or more, each side has one: the smallest hash, or the
    largest, changes sides where the fraction alone left a side empty.
    """
    streams = TaskStreams()
    for _, result in chunks:
        streams.counts.add(result.counts)
        for split in SPLITS:
            streams.splits[split].add(result.splits[split])
        streams.file_sha256 |= result.file_sha256
    moved = moved_extreme(streams, [result for _, result in chunks]) if needs_validation else None
    writers = {split: ShardWriter(dataset_dir / split / task, columns) for split in SPLITS}
    for path, result in chunks:
        places = moved_places(moved, result)
        for split in SPLITS:
            for row, sample in enumerate(read_samples(path, split)):
                segments = {
                    segment for place_split, place_row, segment in places if (place_split, place_row) == (split, row)
                }
                if not segments:
                    writers[split].write(sample)
                    continue
                kept, taken = divide(sample, writers[split].config, segments)
                for other in kept:
                    writers[split].write(other)
                for other in taken:
                    writers[opposite(split)].write(other)
                move_counts(streams, split, writers[split].config, kept, taken)
    streams.index_sha256 = {split: writer.finish() for split, writer in writers.items()}
    return streams


def opposite(split: str) -> str:
    """The other split."""
    return "train" if split == "validation" else "validation"


def moved_extreme(streams: TaskStreams, results: list[ChunkResult]) -> Extreme | None:
    """The hash whose conversations change sides, with no places, or None."""
    smallest = min((result.smallest.hash for result in results if result.smallest), default=0)
    largest = max((result.largest.hash for result in results if result.largest), default=0)
    if smallest == largest:
        return Extreme(smallest, []) if streams.splits["train"].conversations == 0 else None
    if streams.splits["validation"].conversations == 0:
        return Extreme(smallest, [])
    if streams.splits["train"].conversations == 0:
        return Extreme(largest, [])
    return None


def moved_places(moved: Extreme | None, result: ChunkResult) -> list[tuple[str, int, int]]:
    """Where the conversations that change sides lie in a chunk."""
    for extreme in (result.smallest, result.largest):
        if moved and extreme and extreme.hash == moved.hash:
            return extreme.places
    return []


def divide(sample: bytes, description: dict[str, Any], segments: set[int]) -> tuple[list[bytes], list[bytes]]:
    """A row without some of its conversations (no row if none is left), and a row for each of those."""
    columns = decode_sample(sample, description)
    lengths = columns["segment_lengths"]
    borders = np.cumsum(lengths)[:-1]
    pieces = list(zip(np.split(columns["input_ids"], borders), np.split(columns["loss_mask"], borders), strict=True))
    kept = [segment for segment in range(len(lengths)) if segment not in segments]
    rows = [kept, *([segment] for segment in sorted(segments))]
    encoded = [
        encode_sample(
            np.concatenate([pieces[segment][0] for segment in row]),
            np.concatenate([pieces[segment][1] for segment in row]),
            lengths[row],
            columns["task_id"],
        )
        for row in rows
        if row
    ]
    return (encoded[:1], encoded[1:]) if kept else ([], encoded)


def move_counts(
    streams: TaskStreams, split: str, description: dict[str, Any], kept: list[bytes], taken: list[bytes]
) -> None:
    """Books conversations that left a row of `split` for the other split."""
    here, there = streams.splits[split], streams.splits[opposite(split)]
    here.rows -= not kept
    for sample in taken:
        columns = decode_sample(sample, description)
        tokens, supervised = len(columns["input_ids"]), int(columns["loss_mask"].sum())
        here.add(SplitCounts(-1, 0, -tokens, -supervised))
        there.add(SplitCounts(1, 1, tokens, supervised))
