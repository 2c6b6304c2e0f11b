"""The exception for expected failures, which prints itself as a single line, and the one for a single prompt."""

import click


class InferError(click.ClickException):
    """An expected failure; prints itself as one line: `Error: what, in where, fix`."""

    def __init__(self, what: str, *, where: str | None = None, fix: str | None = None) -> None:
        super().__init__(", ".join(part for part in (what, where and f"in {where}", fix) if part))


class PromptError(Exception):
    """One prompt cannot be answered, the others can; `reason` says why."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason
