"""What conversations have in common: prompts with different answers, and what an undue share of them begins with."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from mft_data.audit.findings import MAX_EXAMPLES, Finding, Place
from mft_data.audit.token_checks import last_span_starts

if TYPE_CHECKING:
    from mft_data.audit.streams import Segments

# Shorter prompts are of documents, which have none.
LEAST_PROMPT = 4
# So many first tokens are compared.
OPENING_TOKENS, ANSWER_TOKENS = 24, 8
# Conversations with the same beginning are told of if they are so many, and such a share of their task.
LEAST_COUNT, LEAST_OPENING_SHARE = 10, 0.2


class Hashes(NamedTuple):
    """Of some conversations: where they are, and a hash of each of their parts, (conversations,) int64 each."""

    is_validation: np.ndarray
    rows: np.ndarray
    numbers: np.ndarray
    openings: np.ndarray
    prompts: np.ndarray  # 0 for none worth the name
    answers: np.ndarray
    answer_openings: np.ndarray

    def places(self, task: str, positions: np.ndarray) -> list[Place]:
        """The first of these conversations."""
        return [
            Place(task, "validation" if self.is_validation[p] else "train", int(self.rows[p]), int(self.numbers[p]))
            for p in positions[:MAX_EXAMPLES].tolist()
        ]


class Repeats:
    """The conversations added so far, 50 bytes of each; of a pair only the chosen side."""

    def __init__(self) -> None:
        self.added: dict[str, list[Hashes]] = {}

    def add(self, segments: Segments) -> None:
        """Takes the conversations of a shard in."""
        content, size = segments.input_ids.tobytes(), segments.input_ids.itemsize
        answers = last_span_starts(segments.loss_mask, segments.bounds)
        usable = np.flatnonzero(~segments.is_rejected & (answers < segments.bounds[1:]))
        hashes = []
        borders = (segments.bounds[usable], answers[usable], segments.bounds[usable + 1])
        for start, answer, end in zip(*(border.tolist() for border in borders), strict=True):
            prompt = content[start * size : answer * size]
            answered = content[answer * size : end * size]
            hashes.append(
                (
                    hash(prompt[: OPENING_TOKENS * size]),
                    hash(prompt) if answer - start >= LEAST_PROMPT else 0,
                    hash(answered),
                    hash(answered[: ANSWER_TOKENS * size]),
                )
            )
        columns = np.array(hashes, np.int64).reshape(-1, 4).T
        is_validation = np.full(len(usable), segments.split == "validation")
        entry = Hashes(is_validation, segments.rows[usable], segments.numbers[usable], *columns)
        self.added.setdefault(segments.task, []).append(entry)

    def by_task(self) -> dict[str, Hashes]:
        """All that was added, by task."""
        return {task: Hashes(*map(np.concatenate, zip(*parts, strict=True))) for task, parts in self.added.items()}


def repeated_prompts(task: str, hashes: Hashes) -> Finding | None:
    """The conversations of a task whose prompt also stands before another answer."""
    _, groups = np.unique(hashes.prompts, return_inverse=True)
    order = np.lexsort((hashes.answers, groups))
    sorted_groups, sorted_answers = groups[order], hashes.answers[order]
    is_same_group = sorted_groups[1:] == sorted_groups[:-1]
    differs = sorted_groups[1:][is_same_group & (sorted_answers[1:] != sorted_answers[:-1])]
    found = np.isin(groups, np.unique(differs)) & (hashes.prompts != 0)
    if not found.any():
        return None
    positions = np.flatnonzero(found)
    # Examples of one prompt, next to each other.
    shown = positions[groups[positions] == groups[positions[0]]]
    return Finding(task, "", len(positions), hashes.places(task, shown), len(groups))


def frequent_opening(task: str, hashes: Hashes, openings: np.ndarray) -> Finding | None:
    """What an undue share of a task's conversations begins with, if there is such; `openings` are of the hashes."""
    values, counts = np.unique(openings, return_counts=True)
    if not len(counts) or counts.max() < max(LEAST_COUNT, LEAST_OPENING_SHARE * len(openings)):
        return None
    most = int(counts.argmax())
    places = hashes.places(task, np.flatnonzero(openings == values[most]))
    return Finding(task, "", int(counts[most]), places, len(openings))
