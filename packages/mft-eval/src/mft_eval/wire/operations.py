"""What each operation on a handle does to the object itself, on the side that owns it; standard library only."""

from __future__ import annotations

import operator

from mft_eval.wire.handle import OPERATIONS

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any


def _call(function: Any, arguments: Any, keywords: Any) -> Any:
    return function(*arguments, **keywords)


def _next(iterator: Any) -> tuple[Any, ...]:
    """(item,), or () at the end."""
    try:
        return (next(iterator),)
    except StopIteration:
        return ()


def _divmod(left: Any, right: Any) -> Any:
    return divmod(left, right)


def _enter(manager: Any) -> Any:
    return type(manager).__enter__(manager)


def _exit(manager: Any) -> Any:
    return type(manager).__exit__(manager, None, None, None)


_FUNCTIONS = {
    "call": _call,
    "next": _next,
    "divmod": _divmod,
    "enter": _enter,
    "exit": _exit,
    "and": operator.and_,
    "or": operator.or_,
    **{
        function.__name__: function
        for function in (
            *(getattr, setattr, delattr, iter, len, str, repr, format, hash, int, float, abs, round),
            *(isinstance, issubclass, bool, reversed),
        )
    },
}


def perform(operation: str, operands: tuple[Any, ...]) -> Any:
    """The result of `operation`; raises whatever the object raises, and TypeError for an unknown operation."""
    if operation not in OPERATIONS:
        raise TypeError(f"no operation is called {operation[:20]}")
    function = _FUNCTIONS.get(operation) or getattr(operator, operation)
    return function(*operands)
