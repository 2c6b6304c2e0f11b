"""The held-out side of a conversation depends on what it says."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from mft_data.conversation import Turn, parse_conversation
from mft_data.split import conversation_hash, held_out

hash_lists = st.lists(st.integers(0, 2**64 - 1), min_size=1, max_size=50)
fractions = st.floats(0, 0.99)


@given(hashes=hash_lists, fraction=st.floats(0.001, 0.99))
def test_equal_conversations_share_a_side_and_both_sides_are_used(hashes, fraction):
    is_validation = held_out(np.array(hashes, np.uint64), fraction)
    sides = {}
    for value, side in zip(hashes, is_validation, strict=True):
        assert sides.setdefault(value, side) == side
    if len(sides) > 1:
        assert set(sides.values()) == {True, False}
    else:
        assert not is_validation.any()


@given(hashes=hash_lists, others=hash_lists, fraction=fractions)
def test_other_conversations_move_none_but_the_extremes(hashes, others, fraction):
    alone = held_out(np.array(hashes, np.uint64), fraction)
    together = held_out(np.array(hashes + others, np.uint64), fraction)
    for value, before, after in zip(hashes, alone, together[: len(hashes)], strict=True):
        if min(hashes) < value < max(hashes):
            assert before == after


def test_a_fraction_of_zero_holds_nothing_out():
    assert not held_out(np.array([0, 1, 2**64 - 1], np.uint64), 0.0).any()


def test_the_fraction_held_out_is_the_fraction_asked_for():
    hashes = [conversation_hash((Turn("human", str(number), False), Turn("bot", "x", True))) for number in range(20000)]
    assert 0.045 < held_out(np.array(hashes, np.uint64), 0.05).mean() < 0.055


def test_the_hash_is_frozen_and_blind_to_the_record_shape():
    rounds = [{"role": "human", "content": "h"}, {"role": "bot", "content": "b"}]
    messages = [{"role": "user", "content": "h"}, {"role": "assistant", "content": "b"}]
    conversation = parse_conversation({"chat_rounds": rounds, "id": 1}, "chat_rounds")
    assert parse_conversation({"messages": messages}, "messages") == conversation
    assert conversation_hash(conversation) == FROZEN_HASH
    silent = (*conversation, Turn("human", "again", False), Turn("bot", "b", False))
    spoken = (*silent[:-1], Turn("bot", "b", True))
    assert conversation_hash(silent) != conversation_hash(spoken)


# A changed hash would move conversations between the splits of datasets built before and after.
FROZEN_HASH = 0x11FC6812CD5BD4D0
