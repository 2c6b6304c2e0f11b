import collections
import datetime
import decimal
import enum
import fractions
import math
import os

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mft_eval.wire.channel import read_exactly, read_frame, write_frame
from mft_eval.wire.codec import (
    MAX_DEPTH,
    CannotCrossError,
    GarbageError,
    TooLargeError,
    contents,
    decode,
    encode,
    refill,
)

hashable = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.complex_numbers() | st.text() | st.binary(),
    lambda inner: st.lists(inner, max_size=3).map(tuple) | st.frozensets(inner, max_size=3),
    max_leaves=8,
)
values = st.recursive(
    hashable,
    lambda inner: (
        st.lists(inner, max_size=4) | st.dictionaries(hashable, inner, max_size=4) | st.sets(hashable, max_size=4)
    ),
    max_leaves=20,
)


def canonical(value) -> str:
    """Text that tells types apart, takes a nan for itself and sorts sets."""
    if isinstance(value, (set, frozenset)):
        return f"{type(value).__name__}{sorted(map(canonical, value))}"
    if isinstance(value, dict):
        return f"dict{[(canonical(key), canonical(item)) for key, item in value.items()]}"
    if isinstance(value, (list, tuple)):
        return f"{type(value).__name__}{list(map(canonical, value))}"
    return f"{type(value).__name__}{value!r}"


@given(values)
def test_a_value_comes_back_as_itself(value):
    payload, objects = encode(value, [], is_exact=True)
    decoded, decoded_objects = decode(payload, [])
    assert canonical(decoded) == canonical(value)
    assert len(objects) == len(decoded_objects)


@given(st.binary(max_size=200))
def test_any_bytes_decode_or_are_garbage(payload):
    try:
        value, _ = decode(payload, [])
    except GarbageError:
        return
    assert encode(value, [], is_exact=True)


@given(values, st.data())
def test_damaged_bytes_decode_or_are_garbage(value, data):
    payload = bytearray(encode(value, [], is_exact=True)[0])
    payload[data.draw(st.integers(0, len(payload) - 1))] = data.draw(st.integers(0, 255))
    try:
        decoded, _ = decode(bytes(payload), [])
    except GarbageError:
        return
    assert encode(decoded, [], is_exact=True)


def test_a_list_of_one_is_these_bytes():
    assert encode([1], [], is_exact=True)[0] == b"l\x01\x00\x00\x00i\x01\x00\x00\x00\x01"


def test_special_floats_cross():
    decoded, _ = decode(encode([math.nan, math.inf, -math.inf, -0.0], [], is_exact=True)[0], [])
    assert [repr(item) for item in decoded] == ["nan", "inf", "-inf", "-0.0"]


def test_aliases_stay_aliases():
    row = [0]
    decoded, _ = decode(encode([row, row], [], is_exact=True)[0], [])
    assert decoded[0] is decoded[1]


def test_known_containers_are_named_by_number():
    judges, programs = [1], [1]
    payload, _ = encode((programs, [programs]), [programs], is_exact=False)
    decoded, _ = decode(payload, [judges])
    assert decoded[0] is judges
    assert decoded[1][0] is judges


@pytest.mark.parametrize("container", [[1], {"a": 1}, {1}])
def test_refill_changes_in_place(container):
    replacement = type(container)([("b", 2)])
    refill(container, contents(replacement))
    assert container == replacement


@pytest.mark.parametrize(("container", "items"), [({}, (1,)), (set(), ([],)), ([], [1]), ({}, (([], 1),))])
def test_refill_refuses_what_does_not_fit(container, items):
    with pytest.raises(GarbageError):
        refill(container, items)


class Colour(enum.IntEnum):
    RED = 1


class Words(str):
    __slots__ = ()

    def __eq__(self, other):
        return True

    __hash__ = str.__hash__


@pytest.mark.parametrize(
    ("value", "content"),
    [
        (Colour.RED, 1),
        (Words("a"), "a"),
        (collections.defaultdict(int, a=1), {"a": 1}),
        (collections.namedtuple("Point", "x y")(1, 2), (1, 2)),
    ],
)
def test_subclasses_cross_as_plain_content_or_not_at_all(value, content):
    decoded, _ = decode(encode(value, [], is_exact=False)[0], [])
    assert type(decoded) is type(content)
    assert decoded == content
    with pytest.raises(CannotCrossError):
        encode(value, [], is_exact=True)


@pytest.mark.parametrize("value", [object(), len, (x for x in "a"), memoryview(b"")])
def test_other_types_cannot_cross(value):
    with pytest.raises(CannotCrossError, match=type(value).__name__):
        encode([value], [], is_exact=False)


STDLIB_VALUES = [
    collections.Counter("aab"),
    collections.OrderedDict(b=1, a=[2]),
    collections.deque([1, [2]], 5),
    fractions.Fraction(-1, 3),
    decimal.Decimal("1.50"),
    decimal.Decimal("NaN"),
    datetime.date(2020, 2, 29),
    datetime.time(1, 2, 3, 4),
    datetime.datetime(2020, 1, 2, 3, 4, 5, 6),
    datetime.timedelta(-1, 2, 3),
    range(1, 9, 2),
    bytearray(b"x"),
    int,
    dict,
]


@pytest.mark.parametrize("value", STDLIB_VALUES, ids=repr)
def test_values_of_the_standard_library_cross_as_themselves(value):
    decoded, _ = decode(encode([value], [], is_exact=True)[0], [])
    assert type(decoded[0]) is type(value)
    assert repr(decoded[0]) == repr(value)


@pytest.mark.parametrize(
    "parts",
    [
        (),
        1,
        ("os", "system", ("true",)),
        ("builtins", "eval"),
        ("builtins", "range", ("a",)),
        ("decimal", "Decimal", ("x",)),
    ],
)
def test_parts_of_nothing_known_are_garbage(parts):
    payload = b"v" + encode(parts, [], is_exact=True)[0]
    with pytest.raises(GarbageError):
        decode(payload, [])


def test_a_time_with_a_zone_is_no_plain_value():
    with pytest.raises(CannotCrossError):
        encode(datetime.datetime(2020, 1, 1, tzinfo=datetime.UTC), [], is_exact=True)


@pytest.mark.parametrize("tag", [b"m", b"y", b"n"])
def test_a_handle_is_garbage_where_none_may_be(tag):
    with pytest.raises(GarbageError):
        decode(tag + bytes(8), [])


def test_caps_hold():
    deep: list = []
    for _ in range(MAX_DEPTH + 1):
        deep = [deep]
    cyclic: list = []
    cyclic.append(cyclic)
    for value in (deep, cyclic, "a" * 2**25, 1 << 2**28, [None] * 1_000_001):
        with pytest.raises(TooLargeError):
            encode(value, [], is_exact=True)


def test_a_frame_is_read_without_a_byte_more():
    reader, writer = os.pipe()
    write_frame(writer, b"frame")
    os.write(writer, b"nonce")
    assert read_frame(reader) == b"frame"
    assert read_exactly(reader, 5) == b"nonce"
    os.write(writer, b"\xff\xff\xff\xff")
    with pytest.raises(GarbageError):
        read_frame(reader)
    os.close(writer)
    with pytest.raises(EOFError):
        read_frame(reader)
    os.close(reader)
