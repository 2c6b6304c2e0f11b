"""Types of the command line's options."""

from collections.abc import Callable
from typing import Any

import click


class Parsed(click.ParamType):
    """A text as the tuple that `parse` makes of it, which raises ValueError for what is not `what`."""

    def __init__(self, name: str, what: str, parse: Callable[[str], tuple[Any, ...]]) -> None:
        self.name = name
        self._what = what
        self._parse = parse

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[Any, ...]:
        """The tuple; fails for any other text."""
        if isinstance(value, tuple):
            return value
        try:
            return self._parse(value)
        except ValueError:
            self.fail(f'"{value}" is not {self._what}', param, ctx)


def _counts(value: str) -> tuple[int, ...]:
    counts = sorted({int(part) for part in value.split(",")})
    if counts[0] < 1:
        raise ValueError
    return tuple(counts)


def _part(value: str) -> tuple[int, int]:
    which, _, of = value.partition("/")
    if not (which.isdecimal() and of.isdecimal() and 1 <= int(which) <= int(of)):
        raise ValueError
    return int(which), int(of)


def _floor(value: str) -> tuple[str, float]:
    name, _, floor = value.partition("=")
    if not name.startswith("pass@") or not 0 <= float(floor) <= 1:
        raise ValueError
    return name, float(floor)


# `1,10` as sorted integers; `2/4` as (2, 4); `pass@1=0.30` as ("pass@1", 0.3).
COUNTS = Parsed("counts", "a list of positive integers such as 1,10", _counts)
PART = Parsed("part", "a part such as 2/4", _part)
FLOOR = Parsed("floor", "a floor such as pass@1=0.30", _floor)
