"""Differential tests: on each input a program must do what the reference does; standard library only.

The rules for what counts as equal are EvalPlus's, its special cases included.
"""

from __future__ import annotations

import json
import math

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

_FLOAT_TOLERANCE = 1e-6
_RELATIVE_TOLERANCE = 1e-7
# The order of what these MBPP functions return is open.
_AS_SETS = (
    *("similar_elements", "find_char_long", "common_in_nested_lists", "extract_singly"),
    *("larg_nnum", "intersection_array", "find_dissimilar", "Diff"),
)
# These may return a match object or a boolean.
_AS_TRUTH = ("check_str", "text_match_three", "text_starta_endb")


def check_inputs(
    candidate: Any, *, inputs: str, steps: Any, reference: str, entry_point: str, atol: float, is_mbpp: bool
) -> None:
    """Raises an AssertionError for the first input on which the candidate and the reference differ.

    `inputs` is JSON, a list of lists of arguments; `steps` are those of the task in `evalplus_inputs`.
    """
    namespace: dict[str, Any] = {"__name__": "reference"}
    exec(compile(reference, "<reference>", "exec"), namespace)  # noqa: S102
    is_equal = _ORACLES.get(entry_point, _plainly_equal) if is_mbpp or entry_point == "find_zero" else _plainly_equal
    # Each side has arguments of its own, since it may change them.
    for own, other in zip(json.loads(inputs), json.loads(inputs), strict=True):
        expected = namespace[entry_point](*_arguments(own, steps))
        arguments = _arguments(other, steps)
        found = candidate(*arguments)
        assert is_equal(found, expected, own, atol), f"{entry_point}{own!r}"  # noqa: S101


def _arguments(given: list[Any], steps: Any) -> list[Any]:
    arguments = list(given)
    for position, depth, kind in steps:
        for index in range(len(arguments)) if position is None else (position,):
            arguments[index] = _converted(arguments[index], depth, kind)
    return arguments


def _converted(value: Any, depth: int, kind: str) -> Any:
    """`value` with what lies `depth` deep in it made a `kind`; -1 is every depth."""
    if depth == -1:
        return tuple(_converted(item, -1, kind) for item in value) if isinstance(value, list) else value
    if depth > 0:
        if isinstance(value, dict):
            return {key: _converted(item, depth - 1, kind) for key, item in value.items()}
        if not isinstance(value, (list, tuple)):
            return value
        return type(value)(_converted(item, depth - 1, kind) for item in value)
    if kind == "complex":
        return complex(value)
    if kind == "float":
        return float(value)
    if not isinstance(value, (list, str, tuple)):
        return value
    # EvalPlus has an empty dict for an empty set.
    return (set(value) if value else {}) if kind == "set" else tuple(value)


def _plainly_equal(found: Any, expected: Any, _: Any, atol: float) -> bool:
    if found == expected:
        return True
    if atol == 0 and _is_floats(expected):
        atol = _FLOAT_TOLERANCE
    return atol != 0 and type(found) is type(expected) and _is_close(found, expected, atol)


def _is_floats(value: Any) -> bool:
    if isinstance(value, (list, tuple)):
        return bool(value) and all(isinstance(item, float) for item in value)
    return isinstance(value, float)


def _is_close(found: Any, expected: Any, atol: float) -> bool:
    if isinstance(expected, (list, tuple)):
        is_same_length = isinstance(found, (list, tuple)) and len(found) == len(expected)
        return is_same_length and all(_is_close(*pair, atol) for pair in zip(found, expected, strict=True))
    try:
        if math.isnan(expected) or math.isnan(found) or math.isinf(expected) or math.isinf(found):
            return False
        return abs(found - expected) <= atol + _RELATIVE_TOLERANCE * abs(expected)
    except TypeError:
        return False


def _equal_as_sets(found: Any, expected: Any, *_: Any) -> bool:
    return set(found) == set(expected)


def _equal_as_truth(found: Any, expected: Any, *_: Any) -> bool:
    left, right = (value if isinstance(value, bool) else value is not None for value in (found, expected))
    return left == right


def _anything(*_: Any) -> bool:
    return True


def _equal_or_zero(found: Any, expected: Any, *_: Any) -> bool:
    return found == expected or found == 0


def _surface_area(found: Any, expected: Any, arguments: Any, atol: float) -> bool:
    """The height of the pyramid may also be taken as the perpendicular one."""
    base, height = arguments
    area = round(base**2 + 2 * base * math.hypot(base / 2, height))
    return _plainly_equal(found, expected, arguments, atol) or abs(found - area) <= atol


def _digit_distance(found: Any, expected: Any, arguments: Any, atol: float) -> bool:
    """The digits may also be compared from the right, the shorter number filled with zeros."""
    texts = [str(number) for number in arguments]
    width = max(map(len, texts))
    pairs = zip(*(text.zfill(width) for text in texts), strict=True)
    distance = sum(abs(int(left) - int(right)) for left, right in pairs)
    return _plainly_equal(found, expected, arguments, atol) or found == distance


def _is_zero_of(found: Any, _: Any, arguments: Any, atol: float) -> bool:
    """Any zero of the polynomial will do."""
    (coefficients,) = arguments
    return abs(sum(c * math.pow(found, power) for power, c in enumerate(coefficients))) <= (atol or 1e-4)


_ORACLES: dict[str, Callable[..., bool]] = {
    **dict.fromkeys(_AS_SETS, _equal_as_sets),
    **dict.fromkeys(_AS_TRUTH, _equal_as_truth),
    "are_equivalent": _anything,
    "sum_div": _equal_or_zero,
    "surface_Area": _surface_area,
    "digit_distance_nums": _digit_distance,
    "find_zero": _is_zero_of,
}
