"""Types of the command line's options."""

from typing import Any

import click


class CommaSeparatedCounts(click.ParamType):
    """`1,10` as a sorted tuple of positive integers."""

    name = "counts"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[int, ...]:
        """The counts; fails for anything else."""
        if isinstance(value, tuple):
            return value
        try:
            counts = sorted({int(part) for part in value.split(",")})
        except ValueError:
            counts = [0]
        if counts[0] < 1:
            self.fail(f'"{value}" is not a list of positive integers such as 1,10', param, ctx)
        return tuple(counts)


class Part(click.ParamType):
    """`2/4` as (2, 4)."""

    name = "part"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[int, int]:
        """The part; fails for anything else."""
        if isinstance(value, tuple):
            return value
        which, _, of = value.partition("/")
        if not (which.isdecimal() and of.isdecimal() and 1 <= int(which) <= int(of)):
            self.fail(f'"{value}" is not a part such as 2/4', param, ctx)
        return int(which), int(of)


class Floor(click.ParamType):
    """`pass@1=0.30` as ("pass@1", 0.3)."""

    name = "floor"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[str, float]:
        """The score's name and its floor; fails for anything else."""
        if isinstance(value, tuple):
            return value
        name, _, floor = value.partition("=")
        try:
            found = float(floor)
        except ValueError:
            found = -1.0
        if not name.startswith("pass@") or not 0 <= found <= 1:
            self.fail(f'"{value}" is not a floor such as pass@1=0.30', param, ctx)
        return name, found
