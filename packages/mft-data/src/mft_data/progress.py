"""Progress of a build on stderr, when stderr is a terminal."""

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager


@contextmanager
def show_progress(num_bytes: int) -> Iterator[Callable[[int, int], None]]:
    """A function to call with conversations read and bytes finished since the last call."""
    if not sys.stderr.isatty():
        yield lambda _conversations, _finished_bytes: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

    columns = (BarColumn(), TextColumn("{task.fields[done]:,} conversations"), TimeElapsedColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
        bar = progress.add_task("build", total=num_bytes, done=0)

        def advance(conversations: int, finished_bytes: int) -> None:
            done = progress.tasks[bar].fields["done"] + conversations
            progress.update(bar, advance=finished_bytes, done=done)

        yield advance
