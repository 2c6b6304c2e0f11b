"""The two expected failures, one that ends the command and one that refuses a single record, and counts in words."""

from __future__ import annotations

import click


class DataError(click.ClickException):
    """An expected failure; prints itself as one line: `Error: what, in where, fix`."""

    def __init__(self, what: str, *, where: str | None = None, fix: str | None = None) -> None:
        super().__init__(", ".join(part for part in (what, where and f"in {where}", fix) if part))

    def noted(self, note: str) -> DataError:
        """The same failure with more to say."""
        return DataError(f"{self.message} ({note})")

    @staticmethod
    def of_system(error: OSError) -> DataError:
        """A failure of the file system."""
        return DataError(error.strerror or str(error), where=error.filename and str(error.filename))

    def __reduce__(self) -> tuple[type[DataError], tuple[str]]:
        """Comes back from other processes as it was."""
        return DataError, (self.message,)


class RecordError(ValueError):
    """Why one record is refused; whoever reads the file adds its name and the line."""

    def __init__(self, reason: str, *, fix: str | None = None) -> None:
        super().__init__(reason)
        self.reason = reason
        self.fix = fix


def plural(count: int, one: str, many: str | None = None) -> str:
    """The word that goes with a count: `one`, or the word for many, which is `one` with an s unless it is given."""
    return one if count == 1 else many or f"{one}s"
