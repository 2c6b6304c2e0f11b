"""A handle: stands on one side of the pipe for an object that lives on the other; standard library only."""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

CALLABLE, CLASS, ITERATOR, OBJECT = "c", "t", "i", "x"
KINDS = frozenset((CALLABLE, CLASS, ITERATOR, OBJECT))


class Handle:
    """Every operation on it is asked of the side that owns the object, through `ask(operation, handle, *operands)`.

    `kind` is one of `KINDS`, as that side says; `name` is for messages.
    """

    __slots__ = ("_handle_ask", "_handle_kind", "_handle_name", "_handle_number")

    def __init__(self, ask: Any, number: int, kind: str, name: str) -> None:
        for slot, value in zip(Handle.__slots__, (ask, kind, name, number), strict=True):
            object.__setattr__(self, slot, value)

    def __call__(self, *arguments: Any, **keywords: Any) -> Any:
        return self._handle_ask("call", self, arguments, keywords)

    def __getattr__(self, name: str) -> Any:
        return self._handle_ask("getattr", self, name)

    def __setattr__(self, name: str, value: Any) -> None:
        self._handle_ask("setattr", self, name, value)

    def __delattr__(self, name: str) -> None:
        self._handle_ask("delattr", self, name)

    def __next__(self) -> Any:
        # The end of an iteration is an answer, not an exception that could be mistaken for one of the program's.
        answer = self._handle_ask("next", self)
        if type(answer) is not tuple or len(answer) > 1:
            raise TypeError("an iterator answered with something else than an item")
        if not answer:
            raise StopIteration
        return answer[0]

    def __instancecheck__(self, instance: Any) -> bool:
        return self._handle_ask("isinstance", instance, self) is True

    def __subclasscheck__(self, subclass: Any) -> bool:
        return self._handle_ask("issubclass", subclass, self) is True

    def __bool__(self) -> bool:
        return self._handle_ask("bool", self)

    def __exit__(self, *_: Any) -> Any:
        # An exception of one side has no counterpart to be looked at on the other.
        return self._handle_ask("exit", self)

    def __reduce_ex__(self, _: Any) -> Any:
        raise TypeError("an object of the other side cannot be copied")


def _forwarded(operation: str) -> Any:
    def method(self: Handle, *operands: Any) -> Any:
        return self._handle_ask(operation, self, *operands)

    return method


def _reflected(operation: str) -> Any:
    def method(self: Handle, other: Any) -> Any:
        return self._handle_ask(operation, other, self)

    return method


COMPARISONS = frozenset(("eq", "ne", "lt", "le", "gt", "ge"))
BINARY = ("add", "sub", "mul", "matmul", "truediv", "floordiv", "mod", "pow", "lshift", "rshift", "and", "or", "xor")
_OTHERS = (
    *("iter", "len", "getitem", "setitem", "delitem", "contains", "str", "repr", "format", "hash", "int", "float"),
    *("index", "neg", "pos", "abs", "invert", "round", "divmod", "enter", "reversed"),
)
OPERATIONS = frozenset(
    (
        *(*COMPARISONS, *BINARY, *_OTHERS),
        *("call", "getattr", "setattr", "delattr", "next", "isinstance", "issubclass", "bool", "exit"),
    )
)
for _name in (*COMPARISONS, *BINARY, *_OTHERS):
    setattr(Handle, f"__{_name}__", _forwarded(_name))
for _name in BINARY:
    setattr(Handle, f"__r{_name}__", _reflected(_name))
