"""The pass over the input that finds which conversations repeat an earlier one, or are more than a task may have."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, replace
from itertools import chain, groupby
from typing import TYPE_CHECKING, Any

import numpy as np

from mft_data.execution.chunk_result import Counts
from mft_data.execution.encode_chunk import DUPLICATE, OVER_LIMIT, batches, encode_batch
from mft_data.execution.read_chunk import Record, Tally, read_chunk
from mft_data.filters.duplicates import Duplicates, signatures
from mft_data.rows.limit import over_limit

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

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
class LeftOut:
    """Which accepted conversations of a chunk are left out (0, DUPLICATE or OVER_LIMIT), and the lines that say so."""

    flags: np.ndarray  # (conversations,) uint8
    line_digests: list[str]


def find_left_out(
    work: Work, encoder: Encoder, pieces: Iterable[Chunk], engine: Engine, mode: str
) -> dict[tuple[int, int], LeftOut]:
    """What is left out of each piece of a chunk: what is over a limit, then duplicates in `exact` or `near` mode.

    A limit is one of different conversations where duplicates are dropped. What the build drops for another reason is
    no duplicate, and nothing is a duplicate of it.
    """
    duplicates = None if mode == "none" else Duplicates(mode)
    sent: list[Chunk] = []

    def jobs() -> Iterable[tuple[Any, ...]]:
        for piece in pieces:
            sent.append(replace(piece, spans=()))
            yield scan_job, piece, mode == "near"

    found: dict[tuple[int, int], LeftOut] = {}
    scans = enumerate(engine.run((work, encoder), jobs()))
    # The pieces of a source follow each other.
    for task, own in groupby(scans, lambda numbered: sent[numbered[0]].task):
        limit = work.sources[task].settings.limit
        for number, scan, is_over in with_limit(own, limit, copies_count=duplicates is None):
            flags = np.where(is_over, np.uint8(OVER_LIMIT), np.uint8(0))
            if duplicates:
                is_left_out = is_over if scan.is_left_out is None else is_over | scan.is_left_out
                flags[duplicates.is_duplicate(scan.digests, scan.signatures, is_left_out)] = DUPLICATE
            found[sent[number].key] = LeftOut(flags, scan.line_digests)
    return found


def with_limit(
    scans: Iterable[tuple[int, Scan]], limit: int | None, *, copies_count: bool
) -> Iterator[tuple[int, Scan, np.ndarray]]:
    """The numbered scans of a source, each with a boolean per conversation: whether it is over the limit."""
    if limit is None:
        yield from ((number, scan, np.zeros(len(scan.digests), bool)) for number, scan in scans)
        return
    kept = list(scans)
    flags = over_limit(np.concatenate([scan.digests for _, scan in kept]), limit, copies_count=copies_count)
    done = 0
    for number, scan in kept:
        yield number, scan, flags[done : done + len(scan.digests)]
        done += len(scan.digests)


def left_out_sha256(left_out: Mapping[tuple[int, int], LeftOut]) -> str:
    """Hex digest of what is left out of a build and of the lines that say so."""
    digest = hashlib.sha256()
    for key, piece in sorted(left_out.items()):
        digest.update(repr((key, piece.line_digests)).encode())
        digest.update(piece.flags.tobytes())
    return digest.hexdigest()


def scan_job(state: tuple[Work, Encoder], chunk: Chunk, is_near: bool) -> Scan:
    """Scans one chunk in a worker."""
    work, encoder = state
    tally = Tally()
    digests: list[bytes] = []
    signed: list[np.ndarray] = []
    left_out: list[np.ndarray] = []
    for batch in batches(read_chunk(work, chunk, tally, encoder)):
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
    stretches = chain.from_iterable(record.rendered)
    return sum(len(stretch.text.encode()) + EXTRA_IDS for stretch in stretches) > work.seq_length
