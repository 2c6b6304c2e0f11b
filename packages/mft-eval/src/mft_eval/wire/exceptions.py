"""What to raise on one side of the pipe for an exception of the other; standard library only."""

from __future__ import annotations

import builtins

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

_NOT_RAISED = (
    # A test that iterates over calls would take these for the end of the iteration, and skip its assertions.
    StopIteration,
    StopAsyncIteration,
    # Cannot be made without the exceptions that it holds.
    ExceptionGroup,
)
_LONGEST_NAME = 80


class ProgramError(Exception):
    """Stands for an exception whose type has no counterpart here."""


def names_of(answer: tuple[Any, ...]) -> tuple[str, ...] | None:
    """The type names in a `raised` answer, most derived first, or None where it holds none."""
    names = answer[2] if len(answer) > 2 else ()
    if type(names) is not tuple or not names or not all(type(name) is str for name in names):
        return None
    return tuple(printable(name[:_LONGEST_NAME]) for name in names)


def printable(text: str) -> str:
    """`text` with a question mark for whatever could not be printed or encoded."""
    return "".join(character if character.isprintable() else "?" for character in text)


def counterpart(names: tuple[str, ...], answer: tuple[Any, ...]) -> Exception:
    """An exception of the nearest built-in type that `names` has, with the arguments and text of the `raised` answer.

    Needs "Exception" among `names`.
    """
    arguments, text, attributes = (*answer[3:6], (), "", {})[:3] if len(answer) >= 6 else ((), "", {})
    kinds = [getattr(builtins, name, None) for name in names]
    kind = next(kind for kind in kinds if isinstance(kind, type) and issubclass(kind, Exception))
    if issubclass(kind, _NOT_RAISED):
        kind = ProgramError
    if names[0] != kind.__name__ and type(text) is str:
        kind = _subclass(names[0], kind, text)
    try:
        error = kind(*arguments)
    except Exception:
        # Some types (UnicodeDecodeError) want arguments of their own.
        error = kind.__new__(kind)
    if type(attributes) is dict:
        for name, value in attributes.items():
            if type(name) is str and not name.startswith("__"):
                vars(error)[name] = value
    return error


def _subclass(name: str, kind: type[Exception], text: str) -> type[Exception]:
    def own_text(_: Exception) -> str:
        return text

    return type(name, (kind,), {"__init__": Exception.__init__, "__str__": own_text})
