"""The one exception of this package for failures that a user can mend, and how to tell that memory has run out."""

import errno
import re

import click


class TrainError(click.ClickException):
    """An expected failure; prints itself as one line: `Error: what, in where, fix`."""

    def __init__(self, what: str, *, where: str | None = None, fix: str | None = None) -> None:
        super().__init__(", ".join(part for part in (what, where and f"in {where}", fix) if part))


# What allocators say: torch's for the CPU, which raises a plain RuntimeError, CUDA's, cuBLAS', and the C library's.
COMPLAINTS = re.compile("can(no|')t allocate memory|not enough memory|out of memory|ALLOC_FAILED", re.IGNORECASE)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an exception says that memory has run out."""
    if isinstance(error, OSError):
        return error.errno == errno.ENOMEM
    return isinstance(error, MemoryError) or COMPLAINTS.search(str(error)) is not None


def first_line(error: BaseException) -> str:
    """The first line of an error's message, or its kind if it has none."""
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__
