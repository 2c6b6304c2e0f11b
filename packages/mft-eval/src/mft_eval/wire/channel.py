"""Length-prefixed frames over a pair of pipe descriptors; standard library only."""

import os
import struct

from mft_eval.wire.codec import MAX_PAYLOAD_BYTES, GarbageError

_LENGTH = struct.Struct("<I")
# A frame is a payload and a few words around it.
_MAX_FRAME_BYTES = MAX_PAYLOAD_BYTES + 2**20


def read_exactly(descriptor: int, count: int) -> bytes:
    """The next `count` bytes; raises EOFError when the other end closes first. Reads nothing beyond them."""
    parts = bytearray()
    while len(parts) < count:
        part = os.read(descriptor, min(count - len(parts), 2**20))
        if not part:
            raise EOFError
        parts += part
    return bytes(parts)


def read_frame(descriptor: int) -> bytes:
    """The next frame's payload; raises EOFError, or GarbageError for a length beyond the cap."""
    (length,) = _LENGTH.unpack(read_exactly(descriptor, _LENGTH.size))
    if length > _MAX_FRAME_BYTES:
        raise GarbageError("a frame longer than the cap")
    return read_exactly(descriptor, length)


def write_frame(descriptor: int, payload: bytes) -> None:
    """Writes `payload` as one frame; raises BrokenPipeError when the other end is closed."""
    remaining = memoryview(_LENGTH.pack(len(payload)) + payload)
    while remaining:
        remaining = remaining[os.write(descriptor, remaining) :]
