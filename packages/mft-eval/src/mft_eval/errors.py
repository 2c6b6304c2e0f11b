"""The one exception for expected failures."""

import click


class EvalError(click.ClickException):
    """An expected failure; prints itself as one line: `Error: what, in where, fix`."""

    def __init__(self, what: str, *, where: str | None = None, fix: str | None = None) -> None:
        super().__init__(", ".join(part for part in (what, where and f"in {where}", fix) if part))
