"""The two expected failures: one that ends the command, and one that refuses a single record."""

import click


class DataError(click.ClickException):
    """An expected failure; prints itself as one line: `Error: what, in where, fix`."""

    def __init__(self, what: str, *, where: str | None = None, fix: str | None = None) -> None:
        super().__init__(", ".join(part for part in (what, where and f"in {where}", fix) if part))


class RecordError(ValueError):
    """Why one record is refused; whoever reads the file adds its name and the line."""

    def __init__(self, reason: str, *, fix: str | None = None) -> None:
        super().__init__(reason)
        self.reason = reason
        self.fix = fix
