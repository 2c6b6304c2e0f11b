"""What goes to stdout, and the exit code of a score that is too low."""

import os
import sys
from typing import Any

import click

from mft_eval.errors import EvalError

_UNDER_FLOOR = 3


def fail_under(results: dict[str, Any], floors: tuple[tuple[str, float], ...]) -> None:
    """Exits with 3 where a score is under its floor, having said which."""
    if not floors:
        return
    from mft_eval.commands.show import check_floor

    found = check_floor(results, dict(floors))
    for sentence in found:
        click.echo(f"Error: {sentence}", err=True)
    if found:
        sys.exit(_UNDER_FLOOR)


def write_answer(content: bytes, out: str) -> None:
    """Writes a file and its path to stdout; the content itself where `out` is -."""
    from mft_eval.scoring.artifact import write_file

    if out == "-":
        write_stdout(content)
    else:
        write_file(content, out)
        if sys.stdout is not None:
            write_stdout(f"{out}\n".encode())


def write_stdout(content: bytes) -> None:
    """Writes to stdout; a reader that has gone away is no error."""
    if sys.stdout is None:
        raise EvalError("cannot write to stdout: it is closed")
    try:
        sys.stdout.buffer.write(content)
        sys.stdout.buffer.flush()
    except BrokenPipeError:
        # What Python would flush at exit goes nowhere.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except OSError as error:
        raise EvalError(f"cannot write to stdout: {error.strerror}") from error
