"""Which conversations repeat a stretch of a benchmark's problems."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

import numpy as np

from mft_data.errors import DataError, RecordError
from mft_data.filters.word_windows import next_windows, said, word_hashes
from mft_data.reading.lines import read_lines
from mft_data.reading.records import parse_json

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from mft_data.reading.conversation import Conversation

# A stretch of so many words in common is a repetition. A problem's text of fewer counts as a whole, down to the least.
NGRAM_WORDS = 10
MIN_NGRAM_WORDS = 8

WORD = re.compile(r"[^\W_]+")
ASCII_SPACED = str.maketrans({chr(code): " " for code in range(128) if not chr(code).isalnum()})
# Bits of a hash that a first, coarse look compares: it spares most windows the search.
COARSE_BITS = np.uint64(20)


def problem_ngrams(path: Path) -> np.ndarray:
    """The hashes of every stretch of words in a problems file that contaminates a conversation: sorted uint64.

    The file has one JSON object per line, compressed or not. Every string in it is a text, and so is every list of
    strings, joined: of HumanEval's and MBPP's shape, that takes in prompt, solution and tests. Raises DataError.
    """
    ngrams: list[np.ndarray] = []
    for number, line in read_lines(path):
        try:
            texts = [words for text in texts_of(parse_json(line)) if len(words := split_words(text)) >= MIN_NGRAM_WORDS]
        except RecordError as error:
            raise DataError(error.reason, where=f"{path} line {number}") from error
        for words in texts:
            *_, longest = windows(word_hashes([words]))
            ngrams.append(longest)
    if not ngrams:
        raise DataError(f"no problem has a text of {MIN_NGRAM_WORDS} words or more", where=str(path))
    return np.unique(np.concatenate(ngrams))


def is_contaminated(conversations: list[Conversation], ngrams: np.ndarray) -> np.ndarray:
    """A boolean per conversation, true for one that has any of the `ngrams` in the words of its turns."""
    texts = [split_words("\n".join(said(turn) for turn in conversation)) for conversation in conversations]
    ends = np.cumsum([len(words) for words in texts])
    flags = np.zeros(len(texts), bool)
    coarse = np.zeros(1 << int(COARSE_BITS), bool)
    coarse[ngrams >> (np.uint64(64) - COARSE_BITS)] = True
    for size, hashes in enumerate(windows(word_hashes(texts)), start=MIN_NGRAM_WORDS):
        starts = np.flatnonzero(coarse[hashes >> (np.uint64(64) - COARSE_BITS)])
        found = np.searchsorted(ngrams, hashes[starts])
        starts = starts[ngrams[np.minimum(found, len(ngrams) - 1)] == hashes[starts]]
        # A window that begins in one conversation and ends in the next is in neither.
        owners = np.searchsorted(ends, starts, side="right")
        flags[owners[starts + size <= ends[owners]]] = True
    return flags


def split_words(text: str) -> list[str]:
    """The runs of letters and digits in a text, without regard to case."""
    if text.isascii():
        return text.lower().translate(ASCII_SPACED).split()
    return WORD.findall(text.casefold())


def windows(words: np.ndarray) -> Iterator[np.ndarray]:
    """The hashes of all runs of MIN_NGRAM_WORDS words, then of one word more, up to NGRAM_WORDS; none without a run."""
    hashes = words
    for size in range(1, min(NGRAM_WORDS, len(words)) + 1):
        if size > 1:
            hashes = next_windows(hashes, words, size - 1)
        if size >= MIN_NGRAM_WORDS:
            yield hashes


def texts_of(value: Any) -> Iterator[str]:
    """The texts in a decoded JSON value, of any depth."""
    pending = [value]
    while pending:
        inner = pending.pop()
        if isinstance(inner, str):
            yield inner
        elif isinstance(inner, list) and all(isinstance(item, str) for item in inner):
            yield "\n".join(inner)
        elif isinstance(inner, dict | list):
            pending += inner.values() if isinstance(inner, dict) else inner
