"""One chunk of a build: read, encoded, split, packed, and left on disk as MDS samples with its counts."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass
from itertools import islice
from typing import TYPE_CHECKING, Any

import numpy as np

from mft_data.encoding.encoder import EncodedBatch
from mft_data.errors import DataError
from mft_data.execution.read_chunk import Record, Tally, Work, place_of, read_chunk
from mft_data.reading.sources import file_sha256
from mft_data.rows.overlong import OVERLONG
from mft_data.rows.packing import pack
from mft_data.rows.rows import encode_rows
from mft_data.rows.split import SPLITS, held_out, leading_bits

if TYPE_CHECKING:
    from pathlib import Path

    from mft_data.encoding.encoder import Encoder
    from mft_data.reading.chunks import Chunk

BATCH_CONVERSATIONS = 1000
# Conversations of so many tokens are packed together at most: a bound on memory where a chunk is one huge file.
WINDOW_TOKENS = 1 << 25


@dataclass(slots=True)
class Counts:
    """What became of the records of a chunk or a task."""

    read: int = 0
    rejected: int = 0
    duplicates: int = 0
    contaminated: int = 0
    overlong_dropped: int = 0
    overlong_truncated: int = 0

    def add(self, other: Counts) -> None:
        """Adds the counts of another chunk."""
        for name, value in asdict(other).items():
            setattr(self, name, getattr(self, name) + value)


@dataclass(slots=True)
class SplitCounts:
    """What a chunk or a task has in one split."""

    conversations: int = 0
    rows: int = 0
    tokens: int = 0
    supervised_tokens: int = 0

    def add(self, other: SplitCounts) -> None:
        """Adds the counts of another chunk."""
        for name, value in asdict(other).items():
            setattr(self, name, getattr(self, name) + value)


@dataclass(slots=True)
class Extreme:
    """A smallest or largest hash in a chunk, and where its conversations lie: (split, row, segment) each."""

    hash: int
    places: list[tuple[str, int, int]]


@dataclass(slots=True)
class ChunkResult:
    """What a finished chunk tells; its rows are in files beside it."""

    index: int
    task: str
    counts: Counts
    splits: dict[str, SplitCounts]
    rejects: list[tuple[str, str, int, str]]
    file_sha256: dict[str, str]  # of the files that begin in this chunk, by the source's split and their name
    smallest: Extreme | None = None
    largest: Extreme | None = None

    @property
    def num_tokens(self) -> int:
        """The tokens of its rows in all splits."""
        return sum(split.tokens for split in self.splits.values())


def encode_chunk(work: Work, encoder: Encoder, chunk: Chunk, is_dropped: np.ndarray | None, out: Path) -> ChunkResult:
    """Encodes the chunk into the folder `out`; raises DataError.

    `is_dropped` has a boolean per accepted conversation, true for a duplicate of an earlier one.
    """
    source = work.sources[chunk.task]
    tally = Tally(0, [])
    result = ChunkResult(chunk.index, source.task, Counts(), {split: SplitCounts() for split in SPLITS}, [], {})
    with ChunkFiles(out) as files:
        window = Window(work, chunk, files, result)
        records = read_chunk(work, chunk, tally, encoder.render)
        while batch := list(islice(records, BATCH_CONVERSATIONS)):
            window.add(*encode_batch(work, encoder, chunk, batch, is_dropped, result.counts))
        window.flush()
    result.counts.read, result.counts.rejected = tally.read, len(tally.rejects)
    result.rejects = [tuple(reject) for reject in tally.rejects]
    for span in chunk.spans:
        if span.start == 0:
            file = source.files[span.file]
            result.file_sha256[f"{source.split}/{file.name}"] = file_sha256(file.path)
    return result


def encode_batch(
    work: Work, encoder: Encoder, chunk: Chunk, batch: list[Record], is_dropped: np.ndarray | None, counts: Counts
) -> tuple[EncodedBatch | None, np.ndarray]:
    """The encoded conversations of a batch that are kept, None if none is, and their hashes; adds to `counts`."""
    if is_dropped is not None:
        kept = [record for record in batch if not is_dropped[record.number]]
        counts.duplicates += len(batch) - len(kept)
        batch = kept
    if work.problem_ngrams is not None and batch:
        from mft_data.filters.contamination import is_contaminated

        flags = is_contaminated([record.conversation for record in batch], work.problem_ngrams)
        counts.contaminated += int(flags.sum())
        if work.drops_contaminated:
            batch = [record for record, flag in zip(batch, flags, strict=True) if not flag]
    if not batch:
        return None, np.empty(0, np.uint64)
    encoded = encoder.encode_rendered([record.stretches for record in batch])
    hashes = leading_bits(b"".join(record.digest for record in batch))
    is_overlong = encoded.lengths > work.seq_length
    if is_overlong.any():
        if work.overlong == "error":
            first = int(is_overlong.argmax())
            raise DataError(
                f"the conversation has {encoded.lengths[first]} tokens, more than the {work.seq_length} of a row",
                where=place_of(work, chunk, batch[first]),
                fix="raise --seq-length or give --overlong drop or truncate",
            )
        encoded, is_kept = OVERLONG[work.overlong](encoded, work.seq_length)
        counts.overlong_dropped += int((~is_kept).sum())
        counts.overlong_truncated += int((is_overlong & is_kept).sum())
        hashes = hashes[is_kept]
    return encoded, hashes


class Window:
    """Encoded conversations that wait to be packed together."""

    def __init__(self, work: Work, chunk: Chunk, files: ChunkFiles, result: ChunkResult) -> None:
        self.work, self.chunk, self.files, self.result = work, chunk, files, result
        self.number = 0
        self.start()

    def start(self) -> None:
        """Begins an empty window."""
        self.batches: list[EncodedBatch] = []
        self.hashes: list[np.ndarray] = []
        self.num_tokens = 0

    def add(self, encoded: EncodedBatch | None, hashes: np.ndarray) -> None:
        """Takes a batch in; a full window is packed."""
        if encoded is None or not len(hashes):
            return
        self.batches.append(encoded)
        self.hashes.append(hashes)
        self.num_tokens += len(encoded.input_ids)
        if self.num_tokens >= WINDOW_TOKENS:
            self.flush()

    def flush(self) -> None:
        """Packs the window's conversations and writes their rows."""
        if not self.batches:
            return
        work, source = self.work, self.work.sources[self.chunk.task]
        encoded = EncodedBatch(
            np.concatenate([batch.input_ids for batch in self.batches]),
            np.concatenate([batch.loss_mask for batch in self.batches]),
            np.concatenate([batch.lengths for batch in self.batches]),
        )
        hashes = np.concatenate(self.hashes)
        if source.split is None:
            is_validation = held_out(hashes, work.validation_fraction)
        else:
            is_validation = np.full(len(hashes), source.split == "validation")
        # What a window is called depends on its own task alone: another task in the build changes none of its rows.
        span = self.chunk.spans[0]
        name = f"{work.seed}/{source.task}/{source.files[span.file].name}/{span.start}/{self.number}"
        packed: dict[str, list[list[int]]] = {}
        for split in SPLITS:
            positions = np.flatnonzero(is_validation == (split == "validation"))
            rows = pack(encoded.lengths[positions].tolist(), work.seq_length, work.packing, f"{name}/{split}")
            packed[split] = [positions[row].tolist() for row in rows]
        self.note_extremes(hashes, packed)
        for split, rows in packed.items():
            self.files.write(split, encode_rows(encoded, rows, work.task_ids[self.chunk.task]))
            tokens = np.repeat(is_validation == (split == "validation"), encoded.lengths)
            num_tokens, num_supervised = int(tokens.sum()), int(encoded.loss_mask[tokens].sum())
            self.result.splits[split].add(SplitCounts(sum(map(len, rows)), len(rows), num_tokens, num_supervised))
        self.number += 1
        self.start()

    def note_extremes(self, hashes: np.ndarray, packed: dict[str, list[list[int]]]) -> None:
        """Notes where the conversations of the chunk's smallest and largest hash lie."""
        for name, value in (("smallest", int(hashes.min())), ("largest", int(hashes.max()))):
            wanted = set(np.flatnonzero(hashes == np.uint64(value)).tolist())
            places = [
                (split, self.result.splits[split].rows + row, segment)
                for split, rows in packed.items()
                for row, members in enumerate(rows)
                if not wanted.isdisjoint(members)
                for segment, position in enumerate(members)
                if position in wanted
            ]
            known: Extreme | None = getattr(self.result, name)
            if known is None or (value < known.hash if name == "smallest" else value > known.hash):
                setattr(self.result, name, Extreme(value, places))
            elif value == known.hash:
                known.places.extend(places)


class ChunkFiles:
    """The row files of a chunk being written: for each split the samples end to end, and the size of each."""

    def __init__(self, out: Path) -> None:
        self.out = out

    def __enter__(self) -> ChunkFiles:
        self.samples = {split: (self.out / f"{split}.samples").open("wb") for split in SPLITS}
        self.sizes = {split: (self.out / f"{split}.sizes").open("wb") for split in SPLITS}
        return self

    def __exit__(self, *_: object) -> None:
        for handle in (*self.samples.values(), *self.sizes.values()):
            handle.close()

    def write(self, split: str, samples: Iterable[bytes]) -> None:
        """Appends samples."""
        sizes = [self.samples[split].write(sample) for sample in samples]
        self.sizes[split].write(np.array(sizes, np.uint32).tobytes())


def read_samples(chunk_dir: Path, split: str) -> Iterable[bytes]:
    """The samples of a finished chunk."""
    sizes = np.fromfile(chunk_dir / f"{split}.sizes", np.uint32).tolist()
    with (chunk_dir / f"{split}.samples").open("rb") as handle:
        for size in sizes:
            yield handle.read(size)


def result_document(result: ChunkResult) -> dict[str, Any]:
    """A result as JSON values."""
    return asdict(result)


def result_from(document: dict[str, Any]) -> ChunkResult:
    """The result that a document was made of."""

    def extreme(entry: dict[str, Any] | None) -> Extreme | None:
        return entry and Extreme(entry["hash"], [tuple(place) for place in entry["places"]])

    return ChunkResult(
        index=document["index"],
        task=document["task"],
        counts=Counts(**document["counts"]),
        splits={split: SplitCounts(**entry) for split, entry in document["splits"].items()},
        rejects=[tuple(reject) for reject in document["rejects"]],
        file_sha256=document["file_sha256"],
        smallest=extreme(document["smallest"]),
        largest=extreme(document["largest"]),
    )
