"""Which conversations are held out for validation: decided by what they say, not by where they stand."""

import hashlib

import numpy as np
import orjson

from mft_data.conversation import Conversation

SPLITS = ("train", "validation")


def conversation_hash(conversation: Conversation) -> int:
    """64 bits of the roles, contents and supervision of a conversation; the same in every build."""
    rounds = [[turn.role, turn.content, turn.is_supervised] for turn in conversation]
    return int.from_bytes(hashlib.blake2b(orjson.dumps(rounds), digest_size=8).digest())


def held_out(hashes: np.ndarray, validation_fraction: float) -> np.ndarray:
    """A boolean per conversation of one task, true for validation; `hashes` is (conversations,) uint64.

    The conversations with the smallest hashes are held out. If the fraction is above 0 and not all hashes are equal,
    each side has at least one: the smallest, or the largest, hash changes sides.
    """
    is_validation = hashes < np.uint64(int(validation_fraction * 2**64))
    if validation_fraction > 0 and hashes.min() < hashes.max():
        is_validation |= hashes == hashes.min()
        is_validation &= hashes != hashes.max()
    elif is_validation.all():
        is_validation[:] = False
    return is_validation
