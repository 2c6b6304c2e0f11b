"""Values of the standard library that cross by their parts: a range, a Fraction, a Counter, a date."""

from __future__ import annotations

import sys

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any


def _pairs(value: Any) -> tuple[Any, ...]:
    return (tuple(dict.items(value)),)


def _date(value: Any) -> tuple[Any, ...]:
    return (value.year, value.month, value.day)


def _time(value: Any) -> tuple[Any, ...]:
    return (value.hour, value.minute, value.second, value.microsecond)


# Module and name of a type -> what its constructor makes an equal value from. Exact types only.
_PARTS: dict[tuple[str, str], Callable[[Any], tuple[Any, ...]]] = {
    ("builtins", "bytearray"): lambda value: (bytes(value),),
    ("builtins", "range"): lambda value: (value.start, value.stop, value.step),
    ("collections", "Counter"): lambda value: (dict(value),),
    ("collections", "OrderedDict"): _pairs,
    ("collections", "deque"): lambda value: (tuple(value), value.maxlen),
    ("datetime", "date"): _date,
    ("datetime", "time"): _time,
    ("datetime", "datetime"): lambda value: _date(value) + _time(value),
    ("datetime", "timedelta"): lambda value: (value.days, value.seconds, value.microseconds),
    ("decimal", "Decimal"): lambda value: (str(value),),
    ("fractions", "Fraction"): lambda value: (value.numerator, value.denominator),
}
_TYPES_BY_NAME = {
    ("builtins", kind.__name__): kind
    for kind in (bool, int, float, complex, str, bytes, list, tuple, set, frozenset, dict)
}
_NAMES_BY_TYPE = {kind: name for name, kind in _TYPES_BY_NAME.items()}


def dismantle(value: Any) -> tuple[Any, ...] | None:
    """(module, name, parts) of a value that crosses by its parts, or (module, name) of a plain type; else None."""
    kind = type(value)
    if kind is type:
        return _NAMES_BY_TYPE.get(value)
    name = (kind.__module__, kind.__name__)
    # A time with a zone is an object like any other.
    if name not in _PARTS or getattr(value, "tzinfo", None) is not None:
        return None
    if getattr(sys.modules.get(name[0]), name[1], None) is not kind:
        return None
    return (*name, _PARTS[name](value))


def rebuild(parts: Any) -> Any:
    """The value that `dismantle` took apart; raises ValueError for any other argument, or what the constructor does."""
    match parts:
        case (str(module), str(name)) if (module, name) in _TYPES_BY_NAME:
            return _TYPES_BY_NAME[module, name]
        case (str(module), str(name), tuple(arguments)) if (module, name) in _PARTS:
            return getattr(__import__(module), name)(*arguments)
    raise ValueError
