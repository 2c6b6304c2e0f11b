"""What an audit finds: how many conversations of each task, and where to look at some of them."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import Any, NamedTuple

MAX_EXAMPLES = 3


class Place(NamedTuple):
    """Where a conversation lies: `row` as `inspect --row` counts, `segment` from 1."""

    task: str
    split: str
    row: int
    segment: int

    def __str__(self) -> str:
        """As text, with the split where it is not train."""
        split = "" if self.split == "train" else f"{self.split} "
        return f"{split}row {self.row} segment {self.segment}"


@dataclass(slots=True)
class Finding:
    """The conversations with one thing in common, in one task: how many there are, and the first of them."""

    task: str
    what: str = ""  # in particular: which opening, which character
    count: int = 0
    examples: list[Place] = field(default_factory=list)
    total: int = 0  # conversations of the task that were looked at

    @property
    def share(self) -> float:
        """The share of those looked at."""
        return self.count / max(1, self.total)

    def add(self, place: Place) -> None:
        """Counts one conversation in."""
        self.count += 1
        if len(self.examples) < MAX_EXAMPLES:
            self.examples.append(place)

    def document(self) -> dict[str, Any]:
        """As JSON values."""
        examples = [{"split": place.split, "row": place.row, "segment": place.segment} for place in self.examples]
        counts = {"conversations": self.count, "looked_at": self.total}
        return {"task": self.task, "what": self.what, **counts, "examples": examples}


@dataclass(slots=True)
class Audit:
    """All that an audit found. Of `openings` and `answer_openings` each task has the most frequent one at most."""

    num_conversations: Counter[str]  # by task, both of a pair
    num_read_as_text: int = 0  # conversations that were decoded; all, or evenly spaced ones
    little_supervised: list[Finding] = field(default_factory=list)
    lost_stop_tokens: list[Finding] = field(default_factory=list)
    repeated_prompts: list[Finding] = field(default_factory=list)
    openings: list[Finding] = field(default_factory=list)
    answer_openings: list[Finding] = field(default_factory=list)
    encodings: list[Finding] = field(default_factory=list)
    longest_tokens: list[tuple[str, int, Place]] = field(default_factory=list)  # text, occurrences, the first
    role_characters: dict[str, Counter[str]] = field(default_factory=dict)  # by task
    fence_tokens: dict[str, Counter[str]] = field(default_factory=dict)  # by task, then by language

    def document(self) -> dict[str, Any]:
        """As JSON values."""
        lists = (
            "little_supervised",
            "lost_stop_tokens",
            "repeated_prompts",
            "openings",
            "answer_openings",
            "encodings",
        )
        return {
            "conversations": sum(self.num_conversations.values()),
            "read_as_text": self.num_read_as_text,
            **{name: [finding.document() for finding in getattr(self, name)] for name in lists},
            "longest_tokens": [
                {"text": text, "count": count, **place._asdict()} for text, count, place in self.longest_tokens
            ],
            "role_characters": {task: dict(counts) for task, counts in self.role_characters.items() if counts},
            "fence_tokens": {task: dict(counts.most_common()) for task, counts in self.fence_tokens.items() if counts},
        }
