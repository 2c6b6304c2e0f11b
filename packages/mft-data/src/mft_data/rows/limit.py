"""Which conversations a task's limit keeps: decided by what they say, as the splits are, but by other bits of it."""

import numpy as np


def over_limit(digests: np.ndarray, limit: int, *, copies_count: bool) -> np.ndarray:
    """A boolean per conversation, true for all but `limit` of them; `digests` is (conversations, 2) uint64, 16 bytes.

    The ones with the smallest second halves stay, of equal ones the first; the first halves tell the splits apart, so
    what stays is a fair sample of both. Where copies do not count, so many different ones stay, with all their copies.
    """
    first, second = digests.view(">u8").astype(np.uint64).T
    order = np.lexsort((first, second))  # stable
    ranks = np.arange(len(digests))
    if not copies_count and len(digests):
        is_other = (first[order][1:] != first[order][:-1]) | (second[order][1:] != second[order][:-1])
        ranks[1:] = np.cumsum(is_other)
    flags = np.zeros(len(digests), bool)
    flags[order] = ranks >= limit
    return flags
