"""Branch coverage of the function that unit tests are written for."""

import pytest

from mft_eval.judging.branches import Branches

SOURCE = '''def f(xs, low):
    """Text."""
    total = 0
    for x in xs:
        if x > low and x != 5:
            total += x
    while total > 10:
        total -= 10
    return [y for y in (total,) if y] if total else None
'''


@pytest.mark.parametrize(
    ("calls", "num_taken"),
    [
        ([], 0),
        ([([], 0)], 4),  # entry, no round of the loop, no round of while, the other outcome of total
        ([([1], 0)], 7),  # and the loop's round, x > low, total, y
        ([([1], 0), ([], 0), ([12, 0], 1)], 10),
    ],
)
def test_taken_branches_by_hand(calls, num_taken):
    names = {}
    branches = Branches(SOURCE)
    branches.run(names)
    for arguments in calls:
        names["f"](*arguments)
    assert branches.num_branches == 11
    assert len(branches.taken) == num_taken
    assert branches.coverage() == num_taken / 11


def test_a_marked_program_does_what_the_program_does():
    marked, plain = {}, {}
    Branches(SOURCE).run(marked)
    exec(SOURCE, plain)
    for arguments in (([], 0), ([1, 5, 7, 9, 30], 2), ([3], 3)):
        assert marked["f"](*arguments) == plain["f"](*arguments)
    assert marked["f"].__doc__ == "Text."
