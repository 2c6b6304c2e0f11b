"""Progress of a build on stderr, when stderr is a terminal."""

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager


@contextmanager
def show_progress(num_bytes: int) -> Iterator[Callable[[int, int], None]]:
    """A function to call with the bytes read and the tokens encoded since the last call; shows rate and time left."""
    if not sys.stderr.isatty():
        yield lambda _num_bytes, _num_tokens: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn

    tokens = TextColumn("{task.fields[tokens]:,} tokens")
    columns = (BarColumn(), DownloadColumn(), TransferSpeedColumn(), tokens, TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
        bar = progress.add_task("build", total=num_bytes, tokens=0)

        def advance(finished_bytes: int, num_tokens: int) -> None:
            total = progress.tasks[bar].fields["tokens"] + num_tokens
            progress.update(bar, advance=finished_bytes, tokens=total)

        yield advance
