"""Which conversations are held out for validation: decided by what they say, not by where they stand."""

import hashlib
from typing import Any

import numpy as np
import orjson

from mft_data.reading.conversation import Conversation

SPLITS = ("train", "validation")
DIGEST_BYTES = 16


def conversation_digest(conversation: Conversation) -> bytes:
    """128 bits of the roles, contents, supervision and extras of a conversation; the same in every build."""
    rounds = [
        [turn.role, turn.content, turn.is_supervised, turn.extra]
        if turn.extra
        else [turn.role, turn.content, turn.is_supervised]
        for turn in conversation
    ]
    return hashlib.blake2b(orjson.dumps(rounds), digest_size=DIGEST_BYTES).digest()


def group_digest(group: Any) -> bytes:
    """128 bits of the JSON value that tells which conversations go to the same side."""
    return hashlib.blake2b(orjson.dumps(group, option=orjson.OPT_SORT_KEYS), digest_size=DIGEST_BYTES).digest()


def leading_bits(digests: bytes) -> np.ndarray:
    """The first 64 bits of each of the digests that stand end to end in `digests`: (conversations,) uint64."""
    return np.frombuffer(digests, dtype=">u8")[::2].astype(np.uint64)


def held_out(hashes: np.ndarray, validation_fraction: float) -> np.ndarray:
    """A boolean per conversation, true for validation: the ones with the smallest hashes, (conversations,) uint64."""
    return hashes < np.uint64(int(validation_fraction * 2**64))
