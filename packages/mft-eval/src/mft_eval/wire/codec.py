"""The closed codec in which values cross between the judge and the sandbox; standard library only.

A value is a tag byte and a body. Lists, dicts and sets are numbered in the order in which they are completed, and a
second meeting with the same object is written as its number, so that aliasing survives the crossing. What is no plain
value crosses as a handle, a number that stands for it, where the caller's `Handles` hand it over. The decoder builds
nothing but the types named here and what its `Handles` make of a number, whatever bytes it is given.
"""

from __future__ import annotations

import struct

from mft_eval.wire.stdlib_values import dismantle, rebuild

TYPE_CHECKING = False
if TYPE_CHECKING:  # typing takes longer to import than everything else that the sandbox needs.
    from typing import Any, Protocol

    class Handles(Protocol):
        """What a side of the pipe does about objects that are no plain values."""

        def hand_over(self, value: Any) -> tuple[bytes, int, str]:
            """(b"m", number, kind and name) for an object of this side's, (b"y", number, "") for the other side's own,
            (b"n", 0, its dotted name) for what the other side's standard library has too; or raises CannotCrossError.
            """

        def take(self, tag: bytes, number: int, label: str) -> Any:
            """The object that stands for a handle."""


MAX_DEPTH = 64
MAX_ITEMS = 1_000_000
MAX_PAYLOAD_BYTES = 16 * 2**20

_COUNT = struct.Struct("<I")
_FLOAT = struct.Struct("<d")
_COMPLEX = struct.Struct("<dd")
_CONSTANTS = {b"N": None, b"T": True, b"F": False}
_SEQUENCES = {b"l": list, b"t": tuple, b"s": set, b"z": frozenset}


class CannotCrossError(Exception):
    """A value has a type outside the codec; the message is the type's name."""


class TooLargeError(Exception):
    """A value is deeper or larger than the codec's caps."""


class GarbageError(Exception):
    """The bytes are not an encoding of any value."""


class NoHandles:
    """Only plain values cross."""

    def hand_over(self, value: Any) -> tuple[bytes, int, str]:
        """Raises: the object has no plain content."""
        raise CannotCrossError(type(value).__name__)

    def take(self, tag: bytes, number: int, label: str) -> Any:
        """Raises: no handle was handed over."""
        raise GarbageError(f"a handle where only plain values may be: {tag!r} {number} {label[:80]}")


NO_HANDLES = NoHandles()


def encode(value: Any, known: list[Any], *, is_exact: bool, handles: Handles = NO_HANDLES) -> tuple[bytes, list[Any]]:
    """The encoding of `value`, and `known` followed by the containers met in it for the first time.

    With `is_exact`, an instance of a subclass (an IntEnum, a list of one's own) is an object for `handles`; without,
    its plain content crosses.
    """
    encoder = _Encoder(known, is_exact, handles)
    encoder.write(value, 0)
    return bytes(encoder.out), encoder.objects


def decode(payload: bytes, known: list[Any], handles: Handles = NO_HANDLES) -> tuple[Any, list[Any]]:
    """The value that `payload` encodes, and `known` followed by the containers built for it."""
    decoder = _Decoder(payload, known, handles)
    value = decoder.read(0)
    if decoder.position != len(payload):
        raise GarbageError("bytes after the value")
    return value, decoder.objects


def contents(container: Any) -> tuple[Any, ...]:
    """The items of a list or set, or the (key, value) pairs of a dict."""
    return tuple(container.items()) if type(container) is dict else tuple(container)


def refill(container: Any, items: Any) -> None:
    """Replaces, in place, what `container` (a list, dict or set) holds by `items`, as `contents` gave them."""
    if type(items) is not tuple:
        raise GarbageError("contents that are not a tuple")
    try:
        replacement = type(container)(items)
    except (TypeError, ValueError) as error:
        raise GarbageError("contents that do not fit the container") from error
    container.clear()
    container.extend(replacement) if type(container) is list else container.update(replacement)


class _Encoder:
    """Writes one value, counting its items and numbering its containers."""

    def __init__(self, known: list[Any], is_exact: bool, handles: Handles) -> None:
        self.handles = handles
        self.out = bytearray()
        self.objects = list(known)
        self.numbers = {id(container): number for number, container in enumerate(known)}
        self.num_items = 0
        self.is_exact = is_exact

    def write(self, value: Any, depth: int) -> None:
        self.num_items += 1
        if depth > MAX_DEPTH or self.num_items > MAX_ITEMS or len(self.out) > MAX_PAYLOAD_BYTES:
            raise TooLargeError
        number = self.numbers.get(id(value))
        if number is not None:
            self.out += b"r" + _COUNT.pack(number)
        elif value is None or value is True or value is False:
            self.out += b"N" if value is None else b"T" if value else b"F"
        elif self._is(value, int):
            self._write_bytes(b"i", int.to_bytes(value, int.bit_length(value) // 8 + 1, "little", signed=True))
        elif self._is(value, float):
            self.out += b"f" + _FLOAT.pack(value)
        elif self._is(value, complex):
            self.out += b"c" + _COMPLEX.pack(value.real, value.imag)
        elif self._is(value, str):
            self._write_bytes(b"u", str.encode(value, "utf-8", "surrogatepass"))
        elif self._is(value, bytes):
            self._write_bytes(b"b", bytes(value))
        else:
            parts = dismantle(value)
            if parts is None:
                self._write_container(value, depth)
            else:
                self.out += b"v"
                self.write(parts, depth + 1)

    def _is(self, value: Any, kind: type) -> bool:
        return type(value) is kind if self.is_exact else isinstance(value, kind)

    def _write_bytes(self, tag: bytes, body: bytes) -> None:
        if len(body) > MAX_PAYLOAD_BYTES:
            raise TooLargeError
        self.out += tag + _COUNT.pack(len(body)) + body

    def _write_container(self, value: Any, depth: int) -> None:
        if self._is(value, dict):
            self.out += b"d" + self._count(dict.__len__(value))
            for key, item in dict.items(value):
                self.write(key, depth + 1)
                self.write(item, depth + 1)
        else:
            tag, kind = next((item for item in _SEQUENCES.items() if self._is(value, item[1])), (b"", None))
            if kind is None:
                self._write_handle(value)
                return
            self.out += tag + self._count(kind.__len__(value))
            for item in kind.__iter__(value):
                self.write(item, depth + 1)
        if isinstance(value, (dict, list, set)):
            self.numbers[id(value)] = len(self.objects)
            self.objects.append(value)

    def _count(self, num_items: int) -> bytes:
        """The encoded count; what is too large is so before its items are written."""
        if num_items > MAX_ITEMS:
            raise TooLargeError
        return _COUNT.pack(num_items)

    def _write_handle(self, value: Any) -> None:
        tag, number, label = self.handles.hand_over(value)
        self.out += tag + _COUNT.pack(number)
        self._write_bytes(b"", label.encode("utf-8", "replace"))


class _Decoder:
    """Reads one value, trusting no byte of it."""

    def __init__(self, payload: bytes, known: list[Any], handles: Handles) -> None:
        self.handles = handles
        self.payload = payload
        self.position = 0
        self.objects = list(known)
        self.num_items = 0

    def read(self, depth: int) -> Any:
        self.num_items += 1
        if depth > MAX_DEPTH or self.num_items > MAX_ITEMS:
            raise GarbageError("a value deeper or larger than the caps")
        tag = self._take(1)
        if tag in _CONSTANTS:
            return _CONSTANTS[tag]
        if tag == b"f":
            return _FLOAT.unpack(self._take(8))[0]
        if tag == b"c":
            return complex(*_COMPLEX.unpack(self._take(16)))
        if tag == b"v":
            return self._rebuild(self.read(depth + 1))
        (count,) = _COUNT.unpack(self._take(4))
        if tag == b"r":
            if count >= len(self.objects):
                raise GarbageError("a number that no container has")
            return self.objects[count]
        if tag == b"i":
            return int.from_bytes(self._take(count), "little", signed=True)
        if tag == b"b":
            return self._take(count)
        if tag == b"u":
            return self._text(count)
        if tag in (b"m", b"y", b"n"):
            return self.handles.take(tag, count, self._text(_COUNT.unpack(self._take(4))[0]))
        return self._read_container(tag, count, depth)

    def _text(self, count: int) -> str:
        try:
            return self._take(count).decode("utf-8", "surrogatepass")
        except UnicodeDecodeError as error:
            raise GarbageError("text that is not UTF-8") from error

    def _rebuild(self, parts: Any) -> Any:
        try:
            return rebuild(parts)
        except (TypeError, ValueError, ArithmeticError) as error:
            raise GarbageError("parts that make no value") from error

    def _take(self, count: int) -> bytes:
        taken = self.payload[self.position : self.position + count]
        if len(taken) != count:
            raise GarbageError("the value is cut short")
        self.position += count
        return taken

    def _read_container(self, tag: bytes, count: int, depth: int) -> Any:
        try:
            if tag == b"d":
                container: Any = {}
                for _ in range(count):
                    key = self.read(depth + 1)
                    container[key] = self.read(depth + 1)
            elif tag in _SEQUENCES:
                container = _SEQUENCES[tag]([self.read(depth + 1) for _ in range(count)])
            else:
                raise GarbageError("an unknown tag")
        except TypeError as error:
            raise GarbageError("a key that has no hash") from error
        if isinstance(container, (dict, list, set)):
            self.objects.append(container)
        return container
