"""Hashes of words and of runs of words, the same on every machine and in every process."""

import hashlib
from itertools import chain

import numpy as np

from mft_data.reading.conversation import Turn

# Odd, with its bits well spread: 2^64 divided by the golden ratio.
MULTIPLIER = np.uint64(0x9E3779B97F4A7C15)


# Words whose hashes are kept: some 45 MB of memory.
MAX_KEPT_WORDS = 1 << 18


class KeptHashes(dict[str, int]):
    """Word to the first 64 bits of its blake2b hash; forgets all words when there are MAX_KEPT_WORDS."""

    def __missing__(self, word: str) -> int:
        if len(self) >= MAX_KEPT_WORDS:
            self.clear()
        self[word] = hashed = int.from_bytes(hashlib.blake2b(word.encode(), digest_size=8).digest())
        return hashed


# Most words of a text have been seen before, and a look here is ten times as quick as a hash.
KEPT_HASHES = KeptHashes()


def said(turn: Turn) -> str:
    """What a turn says, calls of tools and the like with it."""
    return f"{turn.content}\n{turn.extra}" if turn.extra else turn.content


def word_hashes(texts: list[list[str]]) -> np.ndarray:
    """The hash of every word of every text, end to end: (words,) uint64."""
    return np.fromiter(map(KEPT_HASHES.__getitem__, chain.from_iterable(texts)), np.uint64, sum(map(len, texts)))


def next_windows(windows: np.ndarray, words: np.ndarray, size: int) -> np.ndarray:
    """The hashes of all runs of `size` + 1 words, from those of `size`: a polynomial in the hashes of the words.

    `windows` is (words - size + 1,) and the result one shorter, both uint64; the windows of size 1 are the words.
    """
    return windows[:-1] * MULTIPLIER + words[size:]
