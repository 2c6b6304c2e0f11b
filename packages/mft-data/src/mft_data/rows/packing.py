"""Which conversations share a row."""

from bisect import bisect_left, insort
from collections import defaultdict
from collections.abc import Callable, Sequence
from random import Random

Rows = list[list[int]]


def pack(lengths: Sequence[int], seq_length: int, packing: str, key: str) -> Rows:
    """Rows of positions in `lengths`, each at most `seq_length` tokens, in an order that follows from `key` alone."""
    random = Random(key)
    rows = PACKINGS[packing](lengths, seq_length, random)
    random.shuffle(rows)
    return rows


def best_fit(lengths: Sequence[int], seq_length: int, random: Random) -> Rows:
    """Best fit decreasing: each conversation, longest first, goes to the fullest row that still holds it.

    O(n log n + n log seq_length) comparisons: rows are kept by free space, and only the distinct free spaces are
    searched. Equal lengths come in random order.
    """
    order = list(range(len(lengths)))
    random.shuffle(order)
    order.sort(key=lambda position: -lengths[position])
    rows: Rows = []
    rows_by_space: defaultdict[int, list[list[int]]] = defaultdict(list)
    spaces: list[int] = []  # the keys of rows_by_space that have rows, ascending
    for position in order:
        length = lengths[position]
        found = bisect_left(spaces, length)
        if found == len(spaces):
            row: list[int] = []
            rows.append(row)
            space = seq_length
        else:
            space = spaces[found]
            row = rows_by_space[space].pop()
            if not rows_by_space[space]:
                spaces.pop(found)
        row.append(position)
        space -= length
        if space:
            if not rows_by_space[space]:
                insort(spaces, space)
            rows_by_space[space].append(row)
    return rows


def one_per_row(lengths: Sequence[int], seq_length: int, random: Random) -> Rows:  # noqa: ARG001
    """Every conversation in a row of its own."""
    return [[position] for position in range(len(lengths))]


PACKINGS: dict[str, Callable[[Sequence[int], int, Random], Rows]] = {"best-fit": best_fit, "none": one_per_row}
