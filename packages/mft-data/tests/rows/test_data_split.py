"""The held-out side of a conversation depends on what it says."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from mft_data.reading.conversation import Turn
from mft_data.reading.shapes import parse_conversations
from mft_data.rows.split import conversation_digest, held_out, leading_bits

hash_lists = st.lists(st.integers(0, 2**64 - 1), min_size=1, max_size=50)
fractions = st.floats(0, 0.99)


@given(hashes=hash_lists, others=hash_lists, fraction=fractions)
def test_the_side_of_a_conversation_does_not_depend_on_others(hashes, others, fraction):
    alone = held_out(np.array(hashes, np.uint64), fraction)
    together = held_out(np.array(hashes + others, np.uint64), fraction)
    assert alone.tolist() == together[: len(hashes)].tolist()


def test_a_fraction_of_zero_holds_nothing_out():
    assert not held_out(np.array([0, 1, 2**64 - 1], np.uint64), 0.0).any()


def test_the_fraction_held_out_is_the_fraction_asked_for():
    digests = [
        conversation_digest((Turn("human", str(number), False), Turn("bot", "x", True))) for number in range(20000)
    ]
    assert abs(held_out(leading_bits(b"".join(digests)), 0.1).mean() - 0.1) < 0.01


def test_hashes_are_the_first_half_of_each_digest():
    digests = [bytes(range(16)), bytes(range(100, 116))]
    assert leading_bits(b"".join(digests)).tolist() == [int.from_bytes(digest[:8]) for digest in digests]


def test_the_digest_is_frozen_and_blind_to_the_record_shape():
    rounds = [{"role": "human", "content": "h"}, {"role": "bot", "content": "b"}]
    messages = [{"role": "user", "content": "h"}, {"role": "assistant", "content": "b"}]
    (conversation,) = parse_conversations({"chat_rounds": rounds, "id": 1}, "chat_rounds")
    assert parse_conversations({"messages": messages}, "messages") == (conversation,)
    assert conversation_digest(conversation) == FROZEN_DIGEST
    silent = (*conversation, Turn("human", "again", False), Turn("bot", "b", False))
    spoken = (*silent[:-1], Turn("bot", "b", True))
    assert conversation_digest(silent) != conversation_digest(spoken)


# A changed digest would move conversations between the splits of datasets built before and after.
FROZEN_DIGEST = bytes.fromhex("394e6b55a456449c9b29fef82b35ae7f")
