"""The pass over the input that finds the conversations of a build that repeat an earlier one."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from mft_data.execution.chunk_result import Counts
from mft_data.execution.encode_chunk import batches, encode_batch
from mft_data.execution.read_chunk import Record, Tally, read_chunk
from mft_data.filters.duplicates import Duplicates, signatures

if TYPE_CHECKING:
    from collections.abc import Iterable

    from mft_data.encoding.encoder import Encoder
    from mft_data.execution.engines import Engine
    from mft_data.execution.read_chunk import Work
    from mft_data.reading.chunks import Chunk

# Ids that a tokenizer may make of a stretch of text beyond one for each of its bytes.
EXTRA_IDS = 8


@dataclass(frozen=True, slots=True)
class Scan:
    """What one chunk's accepted conversations are, in order, and the digests of the lines that they were read from."""

    digests: np.ndarray  # (conversations, 2) uint64
    signatures: np.ndarray | None  # only for near mode
    is_left_out: np.ndarray | None  # true for what the build drops anyway; only for near mode
    line_digests: list[str]


@dataclass(frozen=True, slots=True)
class Repeats:
    """Which accepted conversations of a chunk repeat an earlier one, and the lines that say so."""

    flags: np.ndarray
    line_digests: list[str]


def find_duplicates(
    work: Work, encoder: Encoder, pieces: Iterable[Chunk], engine: Engine, mode: str
) -> dict[tuple[int, int], Repeats]:
    """The duplicates in each piece of a chunk, in `exact` or `near` mode.

    What the build drops for another reason is no duplicate, and nothing is a duplicate of it.
    """
    duplicates = Duplicates(mode)
    keys: list[tuple[int, int]] = []

    def jobs() -> Iterable[tuple[Any, ...]]:
        for piece in pieces:
            keys.append(piece.key)
            yield scan_job, piece, mode == "near"

    found: dict[tuple[int, int], Repeats] = {}
    for number, scan in enumerate(engine.run((work, encoder), jobs())):
        flags = duplicates.is_duplicate(scan.digests, scan.signatures, scan.is_left_out)
        found[keys[number]] = Repeats(flags, scan.line_digests)
    return found


def scan_job(state: tuple[Work, Encoder], chunk: Chunk, is_near: bool) -> Scan:
    """Scans one chunk in a worker."""
    work, encoder = state
    tally = Tally()
    digests: list[bytes] = []
    signed: list[np.ndarray] = []
    left_out: list[np.ndarray] = []
    for batch in batches(read_chunk(work, chunk, tally, encoder.render)):
        digests += [record.digest for record in batch]
        if is_near:
            signed.append(signatures([record.conversation for record in batch]))
            left_out.append(is_left_out(work, encoder, chunk, batch))
    return Scan(
        digests=np.frombuffer(b"".join(digests), np.uint64).reshape(-1, 2),
        signatures=np.concatenate([signatures([]), *signed]) if is_near else None,
        is_left_out=np.concatenate([np.empty(0, bool), *left_out]) if is_near else None,
        line_digests=tally.digests,
    )


def is_left_out(work: Work, encoder: Encoder, chunk: Chunk, batch: list[Record]) -> np.ndarray:
    """A boolean per conversation, true for one that the build drops as contaminated or overlong."""
    flags = np.zeros(len(batch), bool)
    if work.problem_ngrams is not None and work.drops_contaminated:
        from mft_data.filters.contamination import is_contaminated

        flags |= is_contaminated([record.conversation for record in batch], work.problem_ngrams)
    alone = replace(work, problem_ngrams=None)
    for position, record in enumerate(batch):
        if not flags[position] and may_be_overlong(work, record):
            flags[position] = encode_batch(alone, encoder, chunk, [record], None, Counts()) is None
    return flags


def may_be_overlong(work: Work, record: Record) -> bool:
    """Whether a conversation has to be encoded to know that it fits a row."""
    return sum(len(stretch.text.encode()) + EXTRA_IDS for stretch in record.stretches) > work.seq_length
