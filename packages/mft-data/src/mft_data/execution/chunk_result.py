"""What a finished chunk tells: its counts, what it read, and where its extreme conversations lie."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any

from mft_data.execution.read_chunk import Refusal
from mft_data.rows.split import SPLITS


@dataclass(slots=True)
class Counts:
    """What became of the records of a chunk or a task."""

    read: int = 0
    rejected: int = 0
    duplicates: int = 0
    over_limit: int = 0
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
    pairs: int = 0  # of the conversations: a chosen and a rejected one count as one

    def add(self, other: SplitCounts) -> None:
        """Adds the counts of another chunk."""
        for name, value in asdict(other).items():
            setattr(self, name, getattr(self, name) + value)


@dataclass(slots=True)
class Extreme:
    """A smallest or largest hash in a chunk, and where its conversations lie: (split, row, segment) each."""

    hash: int
    places: list[tuple[str, int, int]]


@dataclass(frozen=True, slots=True)
class SpanFacts:
    """What was read of one span: the position of its file in the source, its lines and their digest."""

    file: int
    num_lines: int
    digest: str


@dataclass(slots=True)
class ChunkResult:
    """What a finished chunk tells; its rows and its rejects are in files beside it."""

    index: int
    piece: int
    source: int  # its position in the plan
    spans: list[SpanFacts] = field(default_factory=list)
    counts: Counts = field(default_factory=Counts)
    splits: dict[str, SplitCounts] = field(default_factory=lambda: {split: SplitCounts() for split in SPLITS})
    first_refusal: Refusal | None = None
    unused_fields: dict[str, int] = field(default_factory=dict)
    extra_columns: list[str] = field(default_factory=list)  # that say something of its rows
    left_out_digest: str | None = None  # of the numbers that told what to leave out, if there were any
    smallest: Extreme | None = None
    largest: Extreme | None = None

    @property
    def num_tokens(self) -> int:
        """The tokens of its rows in all splits."""
        return sum(split.tokens for split in self.splits.values())


def result_document(result: ChunkResult) -> dict[str, Any]:
    """A result as JSON values."""
    refusal = result.first_refusal
    return {**asdict(result), "first_refusal": refusal and list(refusal)}


def result_from(document: dict[str, Any]) -> ChunkResult:
    """The result that a document was made of."""

    def extreme(entry: dict[str, Any] | None) -> Extreme | None:
        return None if entry is None else Extreme(entry["hash"], [tuple(place) for place in entry["places"]])

    refusal = document["first_refusal"]
    return ChunkResult(
        index=document["index"],
        piece=document["piece"],
        source=document["source"],
        spans=[SpanFacts(**entry) for entry in document["spans"]],
        counts=Counts(**document["counts"]),
        splits={split: SplitCounts(**entry) for split, entry in document["splits"].items()},
        first_refusal=refusal and Refusal(*refusal),
        unused_fields=document["unused_fields"],
        extra_columns=document["extra_columns"],
        left_out_digest=document["left_out_digest"],
        smallest=extreme(document["smallest"]),
        largest=extreme(document["largest"]),
    )
