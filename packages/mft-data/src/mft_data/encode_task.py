"""All conversations of one task, read in batches, encoded, and fitted to the row length."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from itertools import islice
from typing import TYPE_CHECKING

import numpy as np

from mft_data.encoder import EncodedBatch
from mft_data.errors import DataError
from mft_data.overlong import OVERLONG
from mft_data.records import read_conversations
from mft_data.split import conversation_hash

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from mft_data.conversation import Conversation
    from mft_data.encoder import Encoder
    from mft_data.records import Rejects
    from mft_data.sources import Source, SourceFile

BATCH_CONVERSATIONS = 1000


@dataclass(slots=True)
class ReadCounts:
    """What became of the records of one task."""

    read: int = 0
    rejected: int = 0
    overlong_dropped: int = 0
    overlong_truncated: int = 0


@dataclass(frozen=True, slots=True)
class EncodedTask:
    """The conversations of one task that go into rows, and how many did not."""

    encoded: EncodedBatch
    hashes: np.ndarray  # (conversations,) uint64
    counts: ReadCounts


@dataclass(frozen=True, slots=True)
class Limits:
    """How to read and fit conversations; `record_format` None means by each file's first record."""

    seq_length: int
    overlong: str  # drop, truncate or error
    record_format: str | None


def encode_task(
    source: Source, encoder: Encoder, limits: Limits, rejects: Rejects, advance: Callable[[int, int], None]
) -> EncodedTask:
    """Reads and encodes a whole task; raises DataError.

    `advance` is told of every batch: conversations read, and bytes of the files that have been finished.
    """
    counts = ReadCounts()
    batches: list[EncodedBatch] = []
    hashes: list[int] = []
    for file in source.files:
        records = read_conversations(source.task, file, limits.record_format, rejects)
        while numbered := list(islice(records, BATCH_CONVERSATIONS)):
            accepted = [(line, conversation) for line, conversation in numbered if conversation is not None]
            counts.read += len(numbered)
            counts.rejected += len(numbered) - len(accepted)
            if accepted:
                batch, kept = fit_batch(encoder, accepted, file, limits, counts)
                batches.append(batch)
                hashes.extend(map(conversation_hash, kept))
            advance(len(numbered), 0)
        advance(0, file.size_bytes)
    if not hashes:
        raise DataError(f'task "{source.task}" has no conversations to train on ({describe(counts)})')
    encoded = EncodedBatch(
        np.concatenate([batch.input_ids for batch in batches]),
        np.concatenate([batch.loss_mask for batch in batches]),
        np.concatenate([batch.lengths for batch in batches]),
    )
    return EncodedTask(encoded, np.array(hashes, np.uint64), counts)


def fit_batch(
    encoder: Encoder, accepted: list[tuple[int, Conversation]], file: SourceFile, limits: Limits, counts: ReadCounts
) -> tuple[EncodedBatch, Iterator[Conversation]]:
    """The encoded batch with the overlong ones dealt with, and the conversations left in it; adds to `counts`."""
    conversations = [conversation for _, conversation in accepted]
    batch = encoder.encode_batch(conversations)
    is_overlong = batch.lengths > limits.seq_length
    if not is_overlong.any():
        return batch, iter(conversations)
    if limits.overlong == "error":
        first = int(is_overlong.argmax())
        raise DataError(
            f"the conversation has {batch.lengths[first]} tokens, more than the {limits.seq_length} of a row",
            where=f"{file.path} line {accepted[first][0]}",
            fix="raise --seq-length or give --overlong drop or truncate",
        )
    batch, is_kept = OVERLONG[limits.overlong](batch, limits.seq_length)
    counts.overlong_dropped += int((~is_kept).sum())
    counts.overlong_truncated += int((is_overlong & is_kept).sum())
    return batch, (conversation for conversation, kept in zip(conversations, is_kept, strict=True) if kept)


def describe(counts: ReadCounts) -> str:
    """The counts in words, for an error."""
    return ", ".join(f"{count} {name.replace('_', ' ')}" for name, count in asdict(counts).items())
