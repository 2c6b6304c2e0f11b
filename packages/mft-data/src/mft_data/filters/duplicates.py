"""Which conversations repeat an earlier one, word for word or nearly."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from mft_data.filters.word_windows import MULTIPLIER, next_windows, said, word_hashes
from mft_data.reading.conversation import TOOLS

if TYPE_CHECKING:
    from mft_data.reading.conversation import Conversation

SHINGLE_WORDS = 5
NUM_HASHES = 128
# Two conversations of the threshold's similarity share one of so many bands with probability 0.99, of 0.9 with 0.9999.
NUM_BANDS = 16
THRESHOLD = 0.85
# So many signatures that share a band are compared by it.
MAX_SHARING = 32
SEED = 0
# rensa starts threads for 256 rows or more in a call: they are slower here, and a process that has them cannot fork.
SLICE_ROWS = 128


def signatures(conversations: list[Conversation]) -> np.ndarray:
    """MinHash signatures of the texts of conversations: (conversations, 128) uint32.

    The share of equal values of two signatures estimates the Jaccard similarity of the sets of their shingles, runs of
    five words. Words are what stands between white space in all turns, lowercased; a conversation of fewer than five
    has one shingle, of all of them. Roles and what is supervised do not count, and system turns only where nothing
    else has a word: conversations under one long system text are not alike for that. The values do not depend on the
    process, the machine or the other conversations.
    """
    slices = [conversations[start : start + SLICE_ROWS] for start in range(0, len(conversations), SLICE_ROWS)]
    return np.concatenate([np.empty((0, NUM_HASHES), np.uint32), *map(slice_signatures, slices)])


def slice_signatures(conversations: list[Conversation]) -> np.ndarray:
    """The signatures of at most SLICE_ROWS conversations, and at least one."""
    from rensa import RMinHash  # ty: ignore[missing-module-member] - compiled, without stubs

    texts = [signed_words(conversation) for conversation in conversations]
    # No word is empty, so an empty one can fill up what is short of a shingle.
    texts = [words + [""] * (SHINGLE_WORDS - len(words)) for words in texts]
    words = word_hashes(texts)
    ends = np.cumsum([len(words) for words in texts])
    shingles = words
    for size in range(1, SHINGLE_WORDS):
        shingles = next_windows(shingles, words, size)
    # The shingles that begin in one conversation and end in the next are none.
    is_inside = np.ones(len(shingles), bool)
    for distance in range(1, SHINGLE_WORDS):
        is_inside[ends[:-1] - distance] = False
    row_offsets = np.append(0, ends - (SHINGLE_WORDS - 1) * np.arange(1, len(texts) + 1)).astype(np.uint64)
    matrix = RMinHash.digest_matrix_from_flat_token_hashes(shingles[is_inside], row_offsets, NUM_HASHES, SEED)
    return np.array(matrix.to_rows(), np.uint32)


def signed_words(conversation: Conversation) -> list[str]:
    """The words of a conversation that a signature is made of."""
    words = "\n".join(said(turn) for turn in conversation if turn.role not in ("system", TOOLS)).lower().split()
    return words or "\n".join(said(turn) for turn in conversation).lower().split()


class Duplicates:
    """The conversations kept so far in a build, in `exact` or `near` mode.

    Only kept ones count: what was a duplicate leaves no trace. Each takes 80 bytes of memory in exact mode and 2,200
    in near mode.
    """

    def __init__(self, mode: str) -> None:
        self.digests: set[bytes] = set()
        self.index = NearIndex() if mode == "near" else None

    def is_duplicate(
        self, digests: np.ndarray, signatures: np.ndarray | None = None, is_left_out: np.ndarray | None = None
    ) -> np.ndarray:
        """A boolean per conversation, true for one that repeats an earlier one: of the same call or of one before.

        `digests` are 16 bytes each, as (conversations,) V16 or (conversations, 2) uint64; the `signatures` of the
        same conversations are only for near mode, where a similarity estimated at THRESHOLD or more repeats. Those that
        `is_left_out` is true for are dropped anyway: they neither repeat anything nor are repeated.
        """
        entries = np.ascontiguousarray(digests).view("V16").ravel().tolist()
        flags = np.zeros(len(entries), bool)
        signed = np.empty((0, NUM_HASHES), np.uint32) if signatures is None else signatures
        bands = band_keys(signed).tolist() if self.index else []
        for number, digest in enumerate(entries):
            if is_left_out is not None and is_left_out[number]:
                continue
            if digest in self.digests or (self.index and self.index.has_near(signed[number], bands[number])):
                flags[number] = True
                continue
            self.digests.add(digest)
            if self.index:
                self.index.add(signed[number], bands[number])
        return flags


class NearIndex:
    """Signatures, found by the bands that they share (locality-sensitive hashing).

    Of a band that many have in common, as those of one long prompt with small changes do, MAX_SHARING are compared;
    others of it are found by that band and its neighbours together: by 2, 4, 8 or all 16. So the work for one signature
    is bounded, however many there are.
    """

    def __init__(self) -> None:
        self.signatures: list[bytes] = []
        # Key of one band, or of neighbours, to the position of the only signature with it, or to a list: most bands are
        # of one signature.
        self.positions: dict[int, int | list[int]] = {}

    def has_near(self, signature: np.ndarray, bands: list[int]) -> bool:
        """Whether a signature found by a shared band has THRESHOLD of its values, in their places."""
        candidates: set[int] = set()
        keys = bands
        while keys:
            full = []
            for number, key in enumerate(keys):
                found = self.positions.get(key) if key else None
                if isinstance(found, list):
                    candidates.update(found)
                    if len(found) >= MAX_SHARING:
                        full.append(number)
                elif found is not None:
                    candidates.add(found)
            keys = joined_keys(keys, full)
        if not candidates:
            return False
        content = b"".join([self.signatures[position] for position in candidates])
        same = np.frombuffer(content, np.uint32).reshape(-1, NUM_HASHES) == signature
        return bool(same.sum(axis=1).max() >= THRESHOLD * NUM_HASHES)

    def add(self, signature: np.ndarray, bands: list[int]) -> None:
        """Takes one more signature in."""
        position = len(self.signatures)
        self.signatures.append(signature.tobytes())
        keys = bands
        while keys:
            full = []
            for number, key in enumerate(keys):
                if not key:
                    continue
                found = self.positions.setdefault(key, position)
                if not isinstance(found, list):
                    if found != position:
                        self.positions[key] = [found, position]
                elif len(found) < MAX_SHARING:
                    found.append(position)
                else:
                    full.append(number)
            keys = joined_keys(keys, full)


def joined_keys(keys: list[int], full: list[int]) -> list[int]:
    """The keys of pairs of neighbours, where one of the two is in `full`; none of a key that has no neighbour.

    Pairs that are not needed are 0, which nothing is found by, so that neighbours stay in their places.
    """
    if len(keys) < 2 or not full:
        return []
    pairs = {number // 2 for number in full}
    return [hash((keys[2 * pair], keys[2 * pair + 1])) or 1 if pair in pairs else 0 for pair in range(len(keys) // 2)]


def band_keys(signatures: np.ndarray) -> np.ndarray:
    """A hash of each band of each signature, different for different bands: (conversations, 16) uint64."""
    values = signatures.reshape(-1, NUM_BANDS, NUM_HASHES // NUM_BANDS).astype(np.uint64)
    keys = np.broadcast_to(np.arange(NUM_BANDS, dtype=np.uint64), values.shape[:2])
    for column in range(values.shape[2]):
        keys = (keys ^ (keys >> np.uint64(29))) * MULTIPLIER + values[:, :, column]
    return keys
