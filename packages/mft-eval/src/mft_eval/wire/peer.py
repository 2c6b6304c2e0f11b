"""One end of the pipe: asks the other side, and answers what it asks meanwhile; standard library only."""

from __future__ import annotations

from mft_eval.wire.channel import read_frame, write_frame
from mft_eval.wire.codec import CannotCrossError, GarbageError, TooLargeError, contents, decode, encode, refill
from mft_eval.wire.handle import KINDS, Handle
from mft_eval.wire.operations import perform

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

_LONGEST_TEXT = 2000
MOST_NESTED_ASKS = 100


class Peer:
    """Both ends of the pipe are one of these; what an end allows and how it ends is its subclass's to say.

    A message asks ("ask", number, operation, operands) or answers ("returned", number, result, updates), ("raised",
    number, type names, arguments, text, attributes), ("cannot-cross", number, type name) or ("too-large", number).
    """

    is_exact = False

    def __init__(self, incoming: int, outgoing: int) -> None:
        self.incoming = incoming
        self.outgoing = outgoing
        self.num_asks = 0
        self.depth = 0
        self._given: list[Any] = []
        self._numbers: dict[int, int] = {}
        self._taken: dict[int, Handle] = {}

    def kind_of(self, value: Any) -> str:
        """One of `KINDS` for an object that may be given to the other side; raises CannotCrossError for others."""
        raise NotImplementedError

    def check_operation(self, operation: str, operands: tuple[Any, ...]) -> None:
        """Raises if the other side may not have `operation` performed here."""
        raise NotImplementedError

    def check_taken(self, handle: Handle) -> None:
        """Raises if the other side may not hand over such an object."""
        raise NotImplementedError

    def answered(self, answer: tuple[Any, ...], objects: list[Any]) -> Any:
        """The result in an answer, or raises what stands for an exception of the other side."""
        raise NotImplementedError

    def caught(self, error: BaseException) -> None:
        """Called with what an operation raised here, before it is told to the other side."""

    def hand_over(self, value: Any) -> tuple[bytes, int, str]:
        """The codec's handle of `value`: the other side's own object going home, or one of this side's."""
        if type(value) is Handle:
            return b"y", value._handle_number, ""
        number = self._numbers.get(id(value))
        kind = self.kind_of(value)
        if number is None:
            number = self._numbers[id(value)] = len(self._given)
            self._given.append(value)
        return b"m", number, f"{kind}{type(value).__name__}"

    def take(self, tag: bytes, number: int, label: str) -> Any:
        """The object of this side that comes home, or a `Handle`; the same one for the same number."""
        if tag == b"y":
            if number >= len(self._given):
                raise GarbageError("a number that no object has")
            return self._given[number]
        handle = self._taken.get(number)
        if handle is None:
            kind = label[:1]
            if kind not in KINDS:
                raise GarbageError("an unknown kind of object")
            handle = self._taken[number] = Handle(self.ask_about, number, kind, label[1:80])
        self.check_taken(handle)
        return handle

    def ask_about(self, operation: str, *operands: Any) -> Any:
        """What the other side answers to an operation on one of its objects; mutable operands are updated in place."""
        self.num_asks += 1
        number = self.num_asks
        payload, objects = self.encode_ask(("ask", number, operation, operands))
        write_frame(self.outgoing, payload)
        return self.answered(self.serve_until_answer(number, objects), objects)

    def encode_ask(self, message: tuple[Any, ...]) -> tuple[bytes, list[Any]]:
        """The encoded message and its containers."""
        return encode(message, [], is_exact=self.is_exact, handles=self)

    def serve_until_answer(self, number: int, objects: list[Any]) -> tuple[Any, ...]:
        """The answer to message `number`; performs what the other side asks before it answers."""
        while True:
            payload = read_frame(self.incoming)
            # An answer may name the containers that it was asked with; a question knows none.
            known = [] if payload[:_ASK_PREFIX_BYTES] == _ASK_PREFIX else objects
            message, built = decode(payload, known, self)
            if type(message) is not tuple or len(message) < 2 or type(message[0]) is not str:
                raise GarbageError("not a message")
            if message[0] != "ask":
                if message[1] != number:
                    raise GarbageError("an answer to another question")
                return message
            self.serve(message, built)

    def refill_all(self, objects: list[Any], answer: tuple[Any, ...]) -> None:
        """Gives the containers of a question what a `returned` answer says that they hold now."""
        updates = answer[3] if len(answer) == 4 else None
        if type(updates) is not tuple or len(updates) != len(objects):
            raise GarbageError("not an answer")
        for container, items in zip(objects, updates, strict=True):
            refill(container, items)

    def serve(self, message: tuple[Any, ...], objects: list[Any]) -> None:
        """Performs what the other side asks, and answers."""
        match message:
            case ("ask", int(number), str(operation), tuple(operands)):
                pass
            case _:
                raise GarbageError("not a question")
        self.depth += 1
        try:
            if self.depth > MOST_NESTED_ASKS:
                raise RecursionError
            self.check_operation(operation, operands)
            result = perform(operation, operands)
            updates = tuple(contents(container) for container in objects)
            reply = ("returned", number, result, updates)
            payload, _ = encode(reply, objects, is_exact=self.is_exact, handles=self)
        except CannotCrossError as error:
            payload = _plain(("cannot-cross", number, str(error)))
        except TooLargeError:
            payload = _plain(("too-large", number))
        except BaseException as error:
            self.caught(error)
            payload = raised(number, error)
        finally:
            self.depth -= 1
        write_frame(self.outgoing, payload)


def _plain(message: tuple[Any, ...]) -> bytes:
    return encode(message, [], is_exact=False)[0]


# A question is a tuple of four whose first item is "ask": so its encoding starts.
_ASK_PREFIX = _plain(("ask", 0, "", ()))[:13]
_ASK_PREFIX_BYTES = len(_ASK_PREFIX)


def raised(number: int, error: BaseException) -> bytes:
    """The encoded answer that tells of an exception: the names of its types, its arguments and attributes if plain."""
    names = tuple(kind.__name__ for kind in type(error).__mro__)
    try:
        text = str(error)[:_LONGEST_TEXT]
    except BaseException:
        text = ""
    try:
        return _plain(("raised", number, names, tuple(error.args), text, dict(vars(error))))
    except BaseException:
        return _plain(("raised", number, names, (text,), text, {}))
