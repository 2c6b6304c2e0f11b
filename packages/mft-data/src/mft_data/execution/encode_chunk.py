"""One chunk of a build: read, encoded, split, packed, and left on disk as MDS samples with its counts."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import orjson

from mft_data.dataset.mds import EXTRA_COLUMNS, SEGMENT_SIDES, SEGMENT_WEIGHTS
from mft_data.errors import DataError
from mft_data.execution.chunk_files import ChunkFiles
from mft_data.execution.chunk_result import ChunkResult, Counts, Extreme, SpanFacts, SplitCounts
from mft_data.execution.read_chunk import Record, Tally, Work, place_of, read_chunk
from mft_data.rows.kept import Kept, joined, segments_of
from mft_data.rows.overlong import OVERLONG, longest_text, shortened, starts_of
from mft_data.rows.packing import pack
from mft_data.rows.rows import encode_rows
from mft_data.rows.split import SPLITS, held_out, leading_bits

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from pathlib import Path

    from mft_data.encoding.encoder import Encoder
    from mft_data.reading.chunks import Chunk

# A batch ends with either: a bound on the memory that encoding takes.
BATCH_CONVERSATIONS = 1000
BATCH_CHARACTERS = 1 << 22
# Conversations of so many tokens are packed together at most: a bound on memory where a line is huge.
WINDOW_TOKENS = 1 << 25
REJECTS = "rejects.jsonl"
# Why a conversation is left out before it is looked at any further.
DUPLICATE, OVER_LIMIT = 1, 2


def encode_chunk(work: Work, encoder: Encoder, chunk: Chunk, left_out: np.ndarray | None, out: Path) -> ChunkResult:
    """Encodes the chunk into the folder `out`; raises DataError.

    `left_out` has a number per accepted conversation: 0, DUPLICATE or OVER_LIMIT.
    """
    tally = Tally()
    result = ChunkResult(chunk.index, chunk.piece, chunk.task)
    with ChunkFiles(out) as files:
        window = Window(work, chunk, files, result)
        for batch in batches(read_chunk(work, chunk, tally, encoder)):
            window.add(encode_batch(work, encoder, chunk, batch, left_out, result.counts))
        window.flush()
    result.counts.read, result.counts.rejected = tally.read, len(tally.refusals)
    result.unused_fields = dict(tally.unused_fields)
    result.first_refusal = tally.refusals[0] if tally.refusals else None
    if tally.refusals:
        lines = [orjson.dumps(list(refusal), option=orjson.OPT_APPEND_NEWLINE) for refusal in tally.refusals]
        (out / REJECTS).write_bytes(b"".join(lines))
    result.spans = [
        SpanFacts(span.file, num_lines, digest)
        for span, num_lines, digest in zip(chunk.spans, tally.num_lines, tally.digests, strict=True)
    ]
    return result


def batches(records: Iterable[Record]) -> Iterator[list[Record]]:
    """The records in lists that are encoded together."""
    batch: list[Record] = []
    num_characters = 0
    for record in records:
        batch.append(record)
        num_characters += num_characters_of(record)
        if len(batch) >= BATCH_CONVERSATIONS or num_characters >= BATCH_CHARACTERS:
            yield batch
            batch, num_characters = [], 0
    if batch:
        yield batch


def num_characters_of(record: Record) -> int:
    """How long a record's rendered text is."""
    return sum(len(stretch.text) for stretches in record.rendered for stretch in stretches)


def encode_batch(
    work: Work, encoder: Encoder, chunk: Chunk, batch: list[Record], left_out: np.ndarray | None, counts: Counts
) -> Kept | None:
    """The conversations of a batch that are kept, None if none is; adds to `counts`."""
    if left_out is not None:
        flags = left_out[[record.number for record in batch]]
        counts.duplicates += int((flags == DUPLICATE).sum())
        counts.over_limit += int((flags == OVER_LIMIT).sum())
        batch = [record for record, flag in zip(batch, flags.tolist(), strict=True) if not flag]
    if work.problem_ngrams is not None and batch:
        from mft_data.filters.contamination import is_contaminated

        flags = is_contaminated([record.conversation for record in batch], work.problem_ngrams)
        counts.contaminated += int(flags.sum())
        if work.drops_contaminated:
            batch = [record for record, flag in zip(batch, flags, strict=True) if not flag]
    batch = without_endless(work, encoder, chunk, batch, counts)
    if not batch:
        return None
    kept = Kept(
        encoder.encode_rendered([stretches for record in batch for stretches in record.rendered]),
        np.array([len(record.rendered) for record in batch]),
        leading_bits(b"".join(record.side for record in batch)),
        np.array([record.weight for record in batch], np.float32),
    )
    is_overlong = kept.lengths > work.seq_length
    if is_overlong.any():
        if work.overlong == "error":
            first = int(is_overlong.argmax())
            raise overlong_error(work, chunk, batch[first], f"{kept.lengths[first]} tokens, more than")
        encoded, is_kept = OVERLONG[work.overlong](kept.encoded, kept.num_sides, work.seq_length)
        counts.overlong_dropped += int((~is_kept).sum())
        counts.overlong_truncated += int((is_overlong & is_kept).sum())
        kept = Kept(encoded, kept.num_sides[is_kept], kept.hashes[is_kept], kept.weights[is_kept])
    return kept if len(kept.hashes) else None


def without_endless(work: Work, encoder: Encoder, chunk: Chunk, batch: list[Record], counts: Counts) -> list[Record]:
    """The batch without texts so long that no encoding of them fits a row, or with their beginnings; adds to `counts`.

    Encoding takes a hundred bytes of memory for every one of text.
    """
    limit = longest_text(work.seq_length, encoder.longest_token)
    endless = [record for record in batch if num_characters_of(record) > limit]
    if not endless:
        return batch
    if work.overlong == "error":
        raise overlong_error(work, chunk, endless[0], f"more than {limit} characters, too many for")
    cut = {record.number for record in endless if work.overlong == "truncate" and len(record.rendered) == 1}
    dropped = {record.number for record in endless} - cut
    counts.overlong_dropped += len(dropped)
    return [
        record._replace(rendered=[shortened(record.rendered[0], limit)]) if record.number in cut else record
        for record in batch
        if record.number not in dropped
    ]


def overlong_error(work: Work, chunk: Chunk, record: Record, length: str) -> DataError:
    """The error for a conversation of this length, where none may be overlong."""
    return DataError(
        f"the conversation has {length} the {work.seq_length} of a row",
        where=place_of(work, chunk, record.span, record.line),
        fix="raise --seq-length or give --overlong drop or truncate",
    )


class Window:
    """Encoded conversations that wait to be packed together."""

    def __init__(self, work: Work, chunk: Chunk, files: ChunkFiles, result: ChunkResult) -> None:
        self.work, self.chunk, self.files, self.result = work, chunk, files, result
        self.number = 0
        self.start()

    def start(self) -> None:
        """Begins an empty window."""
        self.batches: list[Kept] = []
        self.num_tokens = 0

    def add(self, kept: Kept | None) -> None:
        """Takes a batch in; a full window is packed."""
        if kept is None:
            return
        self.batches.append(kept)
        self.num_tokens += len(kept.encoded.input_ids)
        if self.num_tokens >= WINDOW_TOKENS:
            self.flush()

    def flush(self) -> None:
        """Packs the window's conversations and writes their rows."""
        if not self.batches:
            return
        work, source = self.work, self.work.sources[self.chunk.task]
        kept = joined(self.batches)
        lengths = kept.lengths
        self.note_extra_columns(kept)
        if source.split is None:
            is_validation = held_out(kept.hashes, source.settings.validation_fraction)
        else:
            is_validation = np.full(len(kept.hashes), source.split == "validation")
        # What a window is called depends on its own task alone: another task in the build changes none of its rows.
        span = self.chunk.spans[0]
        name = f"{work.seed}/{source.task}/{source.files[span.file].name}/{span.start}/{self.number}"
        packed: dict[str, list[list[int]]] = {}
        for split in SPLITS:
            positions = np.flatnonzero(is_validation == (split == "validation"))
            rows = pack(lengths[positions].tolist(), work.seq_length, work.packing, f"{name}/{split}")
            packed[split] = [positions[row].tolist() for row in rows]
        self.note_extremes(kept, packed)
        weights = np.repeat(kept.weights, kept.num_sides)
        for split, rows in packed.items():
            order = [position for row in rows for position in row]
            num_pairs = int((kept.num_sides[order] > 1).sum()) if order else 0
            if num_pairs:
                rows = segments_of(rows, kept.num_sides)
                order = [position for row in rows for position in row]
            columns = {SEGMENT_SIDES: kept.sides[order], SEGMENT_WEIGHTS: weights[order]}
            self.files.write(split, encode_rows(kept.encoded, rows, work.task_ids[self.chunk.task]), columns)
            tokens = np.repeat(is_validation == (split == "validation"), lengths)
            num_tokens, num_supervised = int(tokens.sum()), int(kept.encoded.loss_mask[tokens].sum())
            num_kept = len(order) - num_pairs
            self.result.splits[split].add(SplitCounts(num_kept, len(rows), num_tokens, num_supervised, num_pairs))
        self.number += 1
        self.start()

    def note_extra_columns(self, kept: Kept) -> None:
        """Notes which extra columns say something."""
        found = {SEGMENT_SIDES: (kept.num_sides > 1).any(), SEGMENT_WEIGHTS: (kept.weights != 1).any()}
        known = self.result.extra_columns
        self.result.extra_columns = [name for name in EXTRA_COLUMNS if found[name] or name in known]

    def note_extremes(self, kept: Kept, packed: dict[str, list[list[int]]]) -> None:
        """Notes where the records of the chunk's smallest and largest hash lie, of a pair its chosen one."""
        hashes = kept.hashes
        for name, value in (("smallest", int(hashes.min())), ("largest", int(hashes.max()))):
            wanted = set(np.flatnonzero(hashes == np.uint64(value)).tolist())
            places = [
                (split, self.result.splits[split].rows + row, segment)
                for split, rows in packed.items()
                for row, members in enumerate(rows)
                if not wanted.isdisjoint(members)
                for segment, position in zip(starts_of(kept.num_sides[members]).tolist(), members, strict=True)
                if position in wanted
            ]
            known: Extreme | None = getattr(self.result, name)
            if known is None or (value < known.hash if name == "smallest" else value > known.hash):
                setattr(self.result, name, Extreme(value, places))
            elif value == known.hash:
                known.places.extend(places)
