"""What ids and masks tell of conversations one by one: too little to learn, lost stop tokens, the longest tokens."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

import numpy as np

from mft_data.audit.findings import Finding, Place

if TYPE_CHECKING:
    from mft_data.audit.streams import Segments

# A conversation of which less is learned: tokens, with the stop token, or a share of all.
LEAST_SUPERVISED, LEAST_SHARE = 3, 0.01
NUM_LONGEST = 10


class TokenChecks:
    """The checks over the conversations added so far; `token_lengths` are the characters of each id's text."""

    def __init__(self, special_ids: set[int], token_lengths: np.ndarray) -> None:
        self.special_ids = np.array(sorted(special_ids), np.int64)
        self.token_lengths = token_lengths
        self.little: dict[str, Finding] = {}
        self.lost: dict[str, Finding] = {}
        self.num_conversations: Counter[str] = Counter()
        self.token_counts = np.zeros(len(token_lengths), np.int64)
        self.token_places: dict[int, Place] = {}

    def add(self, segments: Segments) -> None:
        """Looks at the conversations of a shard."""
        starts, ends = segments.bounds[:-1], segments.bounds[1:]
        supervised_before = np.concatenate([[0], np.cumsum(segments.loss_mask, dtype=np.int64)])
        supervised = supervised_before[ends] - supervised_before[starts]
        is_little = (supervised < LEAST_SUPERVISED) | (supervised < LEAST_SHARE * (ends - starts))
        note(self.little, segments, is_little)
        lasts = last_positions(segments.loss_mask, segments.bounds)
        stops = segments.input_ids[np.maximum(lasts, 0)]
        note(self.lost, segments, (supervised > 0) & ~np.isin(stops, self.special_ids))
        self.num_conversations[segments.task] += len(segments.rows)
        counts = np.bincount(segments.input_ids, minlength=len(self.token_counts))
        self.token_counts += counts
        # The longest of all are among the longest of the shard in which they come first.
        for token in longest(self.token_lengths, counts > 0):
            if token not in self.token_places:
                position = int(np.argmax(segments.input_ids == token))
                owner = int(np.searchsorted(segments.bounds, position, side="right")) - 1
                self.token_places[token] = segments.place(owner)

    def longest_tokens(self) -> list[tuple[int, int, Place]]:
        """The longest tokens that occur, with how often they do and where first."""
        found = longest(self.token_lengths, self.token_counts > 0)
        return [(token, int(self.token_counts[token]), self.token_places[token]) for token in found]


def longest(lengths: np.ndarray, is_there: np.ndarray) -> list[int]:
    """The longest tokens of those that are there, of equal ones the first."""
    tokens = np.flatnonzero(is_there)
    return tokens[np.argsort(-lengths[tokens], kind="stable")[:NUM_LONGEST]].tolist()


def note(findings: dict[str, Finding], segments: Segments, is_found: np.ndarray) -> None:
    """Counts the conversations that are found into the finding of their task."""
    for position in np.flatnonzero(is_found).tolist():
        findings.setdefault(segments.task, Finding(segments.task)).add(segments.place(position))


def last_positions(loss_mask: np.ndarray, bounds: np.ndarray) -> np.ndarray:
    """The position of the last supervised token of each conversation, -1 for one that has none."""
    positions = np.where(loss_mask > 0, np.arange(len(loss_mask)), -1)
    return np.maximum.reduceat(positions, bounds[:-1])


def last_span_starts(loss_mask: np.ndarray, bounds: np.ndarray) -> np.ndarray:
    """Where the last supervised stretch of each conversation begins; its end where it has none."""
    # The first token of a conversation is never supervised, so no stretch goes from one to the next.
    is_start = (loss_mask > 0) & (np.concatenate([[0], loss_mask[:-1]]) == 0)
    positions = np.where(is_start, np.arange(len(loss_mask)), -1)
    found = np.maximum.reduceat(positions, bounds[:-1])
    return np.where(found >= 0, found, bounds[1:])
