"""The program's end of the pipe: gives every object that the judge may ask about; standard library only."""

from __future__ import annotations

import sys

from mft_eval.wire.codec import GarbageError
from mft_eval.wire.exceptions import ProgramError, counterpart, names_of
from mft_eval.wire.handle import CALLABLE, CLASS, ITERATOR, OBJECT, Handle
from mft_eval.wire.peer import Peer

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

_VIEWS = (type({}.keys()), type({}.values()), type({}.items()))
_FUNCTIONS = (type(lambda: None), type(len), type([].append), type(str.upper), type(ProgramError().__str__))


class ProgramSide(Peer):
    """Allows everything: the program is free in its own sandbox, and the judge is trusted."""

    def kind_of(self, value: Any) -> str:
        """How the judge may use `value`."""
        if isinstance(value, type):
            return CLASS
        if isinstance(value, (*_FUNCTIONS, type(self.kind_of))):
            return CALLABLE
        return ITERATOR if hasattr(type(value), "__next__") or type(value) in _VIEWS else OBJECT

    def check_operation(self, operation: str, operands: tuple[Any, ...]) -> None:
        """The judge may ask anything."""

    def check_taken(self, handle: Handle) -> None:
        """The judge may hand over anything."""

    def take(self, tag: bytes, number: int, label: str) -> Any:
        """Like any peer's, and what the judge calls by a name of the standard library."""
        if tag == b"n":
            module, _, name = label.partition(":")
            __import__(module)
            return getattr(sys.modules[module], name)
        return super().take(tag, number, label)

    def answered(self, answer: tuple[Any, ...], objects: list[Any]) -> Any:
        """The result of a callback; its exceptions are raised here as the nearest built-in ones."""
        if answer[0] == "returned":
            self.refill_all(objects, answer)
            return answer[2]
        names = names_of(answer)
        if answer[0] == "raised" and names and "Exception" in names:
            raise counterpart(names, answer)
        raise GarbageError("a value of the test cannot cross")
