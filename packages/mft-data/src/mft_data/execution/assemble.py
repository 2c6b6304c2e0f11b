"""Finished chunks joined into the streams of a dataset."""

from __future__ import annotations

import shutil
from collections import Counter
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import orjson

from mft_data.dataset.dataset_dir import REJECTS, write_manifest
from mft_data.dataset.mds import (
    CHOSEN,
    EXTRA_COLUMNS,
    SEGMENT_SIDES,
    ShardWriter,
    decode_sample,
    encode_sample,
    mds_columns,
    with_extra,
)
from mft_data.encoding.tokenizer import tokenizer_sha256
from mft_data.errors import DataError
from mft_data.execution import encode_chunk
from mft_data.execution.chunk_files import read_samples
from mft_data.execution.chunk_result import ChunkResult, Counts, Extreme, SplitCounts
from mft_data.execution.chunk_store import finished_chunk
from mft_data.execution.read_chunk import Refusal
from mft_data.reading.records import Reject
from mft_data.reading.sources import file_sha256
from mft_data.rows.split import SPLITS

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from pathlib import Path

    from mft_data.reading.survey import FileSurvey

    Surveys = Mapping[tuple[int, int], FileSurvey]
    StoredChunk = tuple[Path, ChunkResult]


@dataclass(slots=True)
class TaskStreams:
    """What a task of the dataset holds."""

    counts: Counts = field(default_factory=Counts)
    splits: dict[str, SplitCounts] = field(default_factory=lambda: {split: SplitCounts() for split in SPLITS})
    index_sha256: dict[str, str | None] = field(default_factory=dict)
    unused_fields: Counter[str] = field(default_factory=Counter)

    def split_entry(self, split: str, *, has_pairs: bool) -> dict[str, Any]:
        """The manifest's entry of one split, with the number of its pairs in a dataset that has any."""
        counts = asdict(self.splits[split])
        if not has_pairs:
            del counts["pairs"]
        return {**counts, "index_sha256": self.index_sha256[split]}


def assemble_dataset(
    dataset_dir: Path, document: bytes, folders: Mapping[tuple[int, int], Path], surveys: Surveys, tokenizer_dir: Path
) -> dict[str, Any]:
    """Writes a whole dataset from the finished chunks of a build, and returns its manifest; raises DataError.

    `document` is the build's plan; `folders` says for each piece of a chunk, in order, where it lies; `surveys` tells
    of each file, by the positions of its source and of the file.
    """
    shutil.rmtree(dataset_dir, ignore_errors=True)
    dataset_dir.mkdir()
    shutil.copytree(tokenizer_dir, dataset_dir / "tokenizer")
    plan = orjson.loads(document)
    facts, sources = plan["manifest"], plan["sources"]
    chunks = [(folder, finished_chunk(folder)) for folder in folders.values()]
    check_sources(sources, chunks, surveys)
    said = {name for _, result in chunks for name in result.extra_columns}
    if features := [name for name in EXTRA_COLUMNS if name in said]:
        ids_dtype = facts["columns"]["input_ids"].removeprefix("ndarray:")
        facts |= {"features": features, "columns": mds_columns(ids_dtype, features)}
    tasks = []
    for task_id, task in enumerate(plan["settings"]["tasks"]):
        own_sources = {position: source for position, source in enumerate(sources) if source["task"] == task}
        own = [(folder, result) for folder, result in chunks if result.source in own_sources]
        first = next(iter(own_sources.values()))
        needs_validation = first["settings"]["validation_fraction"] > 0 and first["split"] is None
        streams = assemble_task(dataset_dir, task, facts["columns"], own, needs_validation)
        if not streams.splits["train"].conversations:
            raise DataError(
                f'task "{task}" has no conversations to train on ({describe(streams.counts)})',
                fix="give it others, or leave it out",
            )
        splits = {split: streams.split_entry(split, has_pairs=SEGMENT_SIDES in features) for split in SPLITS}
        tasks.append(task_entry(task, task_id, own_sources, streams, splits, surveys))
    with (dataset_dir / REJECTS).open("wb") as handle:
        for reject in rejects(sources, chunks):
            handle.write(orjson.dumps(reject._asdict(), option=orjson.OPT_APPEND_NEWLINE))
    manifest = {
        **facts,
        "tokenizer_sha256": tokenizer_sha256(dataset_dir / "tokenizer"),
        "tokenizer_files": {path.name: file_sha256(path) for path in sorted((dataset_dir / "tokenizer").iterdir())},
        "rejects_sha256": file_sha256(dataset_dir / REJECTS),
        "tasks": tasks,
    }
    write_manifest(dataset_dir, manifest)
    return manifest


def check_sources(sources: list[dict[str, Any]], chunks: Sequence[StoredChunk], surveys: Surveys) -> None:
    """Raises DataError unless all chunks of a file read the lines that its survey found."""
    found: dict[tuple[int, int], list[str]] = {}
    for _, result in chunks:
        for span in result.spans:
            found.setdefault((result.source, span.file), []).append(span.digest)
    for (position, number), survey in surveys.items():
        if survey.digests is not None and found[position, number] != survey.digests:
            source = sources[position]
            raise DataError(
                "the file changed while the dataset was built from it",
                where=f"{source['task']}/{source['files'][number]['file']}",
                fix="build anew with --overwrite, from files that stay as they are",
            )


def rejects(sources: list[dict[str, Any]], chunks: Sequence[StoredChunk]) -> Iterator[Reject]:
    """Every refused record of a build, in order, with its line in its file."""
    lines_before: dict[tuple[int, int], int] = {}
    for folder, result in chunks:
        source = sources[result.source]
        starts = []
        for span in result.spans:
            starts.append(lines_before.get((result.source, span.file), 0))
            lines_before[result.source, span.file] = starts[-1] + span.num_lines
        if not result.counts.rejected:
            continue
        with (folder / encode_chunk.REJECTS).open("rb") as handle:
            for line in handle:
                refusal = Refusal(*orjson.loads(line))
                file = source["files"][result.spans[refusal.span].file]["file"]
                yield Reject(source["task"], file, starts[refusal.span] + refusal.line, refusal.reason)


def task_entry(
    task: str,
    task_id: int,
    sources: Mapping[int, dict[str, Any]],
    streams: TaskStreams,
    splits: dict[str, Any],
    surveys: Surveys,
) -> dict[str, Any]:
    """The manifest's entry of one task."""
    return {
        "name": task,
        "task_id": task_id,
        "sources": [
            {
                "file": file["file"],
                "split": source["split"],
                "size_bytes": file["size_bytes"],
                "sha256": surveys[position, number].sha256,
            }
            for position, source in sources.items()
            for number, file in enumerate(source["files"])
        ],
        "settings": next(iter(sources.values()))["settings"],
        "conversations": asdict(streams.counts),
        "unused_fields": dict(sorted(streams.unused_fields.items())),
        "splits": splits,
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
        streams.unused_fields.update(result.unused_fields)
        for split in SPLITS:
            streams.splits[split].add(result.splits[split])
    moved = moved_extreme(streams, [result for _, result in chunks]) if needs_validation else None
    writers = {split: ShardWriter(dataset_dir / split / task, columns) for split in SPLITS}
    for path, result in chunks:
        places = moved_places(moved, result)
        for split in SPLITS:
            for row, sample in enumerate(read_samples(path, split, columns)):
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
    """A row without some of its records (no row if none is left), and a row for each of those.

    `segments` are the conversations that are taken out, of pairs the chosen ones.
    """
    columns = decode_sample(sample, description)
    lengths = columns["segment_lengths"]
    sides = columns.get(SEGMENT_SIDES, np.zeros(len(lengths), np.uint8))
    taken = [[segment, segment + 1] if sides[segment] == CHOSEN else [segment] for segment in sorted(segments)]
    borders = np.cumsum(lengths)[:-1]
    pieces = list(zip(np.split(columns["input_ids"], borders), np.split(columns["loss_mask"], borders), strict=True))
    gone = {segment for record in taken for segment in record}
    kept = [segment for segment in range(len(lengths)) if segment not in gone]
    rows = [kept, *taken]
    encoded = [part_of_row(columns, pieces, row) for row in rows if row]
    return (encoded[:1], encoded[1:]) if kept else ([], encoded)


def part_of_row(columns: dict[str, Any], pieces: list[tuple[np.ndarray, np.ndarray]], segments: list[int]) -> bytes:
    """The sample of some segments of a row, whose ids and masks are `pieces`."""
    sample = encode_sample(
        np.concatenate([pieces[segment][0] for segment in segments]),
        np.concatenate([pieces[segment][1] for segment in segments]),
        columns["segment_lengths"][segments],
        columns["task_id"],
    )
    return with_extra(sample, [columns[name][segments] for name in EXTRA_COLUMNS if name in columns])


def move_counts(
    streams: TaskStreams, split: str, description: dict[str, Any], kept: list[bytes], taken: list[bytes]
) -> None:
    """Books conversations that left a row of `split` for the other split."""
    here, there = streams.splits[split], streams.splits[opposite(split)]
    here.rows -= not kept
    for sample in taken:
        columns = decode_sample(sample, description)
        tokens, supervised = len(columns["input_ids"]), int(columns["loss_mask"].sum())
        num_pairs = int(CHOSEN in columns.get(SEGMENT_SIDES, ()))
        here.add(SplitCounts(-1, 0, -tokens, -supervised, -num_pairs))
        there.add(SplitCounts(1, 1, tokens, supervised, num_pairs))
