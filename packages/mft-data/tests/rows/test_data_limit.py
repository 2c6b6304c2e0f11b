"""Which conversations a limit keeps."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from mft_data.rows.limit import over_limit


def as_digests(values):
    return np.frombuffer(b"".join(value.to_bytes(16, "big") for value in values), np.uint64).reshape(-1, 2)


def test_the_smallest_second_halves_stay():
    values = [3 << 64 | 9, 1 << 64 | 5, 7 << 64 | 5, 7 << 64 | 5, 2 << 64 | 7]
    assert over_limit(as_digests(values), 2, copies_count=True).tolist() == [True, False, False, True, True]
    assert over_limit(as_digests(values), 2, copies_count=False).tolist() == [True, False, False, False, True]


@given(
    values=st.lists(st.sampled_from([n << 64 | n * n % 7 for n in range(20)])),
    limit=st.integers(1, 25),
    copies_count=st.booleans(),
    data=st.data(),
)
def test_what_stays_depends_on_no_order(values, limit, copies_count, data):
    def kept(values):
        flags = over_limit(as_digests(values), limit, copies_count=copies_count)
        return sorted(value for value, flag in zip(values, flags, strict=True) if not flag)

    found = kept(values)
    assert len(found if copies_count else set(found)) == min(limit, len(values if copies_count else set(values)))
    assert kept(data.draw(st.permutations(values))) == found
