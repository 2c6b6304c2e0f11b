"""Writing a directory from all ranks, beside the training or before it goes on; it appears by one rename."""

from __future__ import annotations

import contextlib
import functools
import shutil
import threading
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from mft_train.checkpoint.publish import publish
from mft_train.errors import TrainError, first_line, is_out_of_memory

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path
    from typing import Self

    from accelerate import Accelerator

POLL_SECONDS = 0.05


@dataclass(slots=True)
class Writing:
    """What is being written, and how it ended in this rank."""

    staging: Path
    after: Callable[[], None]
    thread: threading.Thread = field(init=False)
    error: BaseException | None = None


@dataclass(slots=True)
class CheckpointWriter:
    """One directory at a time. The ranks meet by files, not by collectives, which a long write would run out of time.

    Every rank writes its part and then an empty file that says so; rank 0 waits for those, completes the directory and
    publishes it.
    """

    accelerator: Accelerator
    is_background: bool = False
    current: Writing | None = None
    is_abandoned: threading.Event = field(default_factory=threading.Event)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        """Lets what is being written end; after an error, what other ranks owe is not waited for."""
        if self.current is None:
            return
        if kind is None:
            self.wait()
        else:
            self.is_abandoned.set()
            self.current.thread.join()

    def write(
        self,
        target: Path,
        begin: Callable[[Path], None],
        write_part: Callable[[Path], None],
        complete: Callable[[Path], None],
        after: Callable[[], None] = lambda: None,
    ) -> None:
        """Writes `target`: `begin` on rank 0 first, then each rank its part, then `complete` on rank 0.

        All ranks call this together. `after` runs when the directory is there: before this returns, or in the first
        `collect` or `wait` from then on if the writing goes on in the background.
        """
        self.wait()
        staging = target.with_name(f".{target.name}.partial")
        if self.accelerator.is_main_process:
            shutil.rmtree(staging, ignore_errors=True)
            with self.writing(staging):
                staging.mkdir(parents=True)
                begin(staging)
        self.accelerator.wait_for_everyone()
        self.current = Writing(staging, after)
        work = functools.partial(self.run, self.current, target, write_part, complete)
        self.current.thread = threading.Thread(target=work, daemon=True)
        self.current.thread.start()
        if not self.is_background:
            self.wait()

    def run(
        self, current: Writing, target: Path, write_part: Callable[[Path], None], complete: Callable[[Path], None]
    ) -> None:
        """The writing itself, in a thread."""
        staging = current.staging
        rank, ranks = self.accelerator.process_index, self.accelerator.num_processes
        try:
            with self.writing(staging):
                write_part(staging)
                if rank > 0:
                    (staging / f".{rank}.written").touch()
                    return
                self.await_parts(staging, ranks)
                complete(staging)
                publish(staging, target)
        except BaseException as error:
            current.error = error  # the main thread tells it
            if rank > 0:
                with contextlib.suppress(OSError):
                    (staging / f".{rank}.failed").touch()

    def await_parts(self, staging: Path, ranks: int) -> None:
        """Waits until every other rank has written its part; raises TrainError if one could not."""
        missing = set(range(1, ranks))
        while missing:
            for rank in sorted(missing):
                if (staging / f".{rank}.failed").exists():
                    raise TrainError(f"rank {rank} could not write its part", where=str(staging.parent))
                if (staging / f".{rank}.written").exists():
                    (staging / f".{rank}.written").unlink()
                    missing.remove(rank)
            if missing and self.is_abandoned.wait(POLL_SECONDS):
                raise TrainError(f"rank {min(missing)} has not written its part", where=str(staging.parent))

    @contextlib.contextmanager
    def writing(self, staging: Path) -> Iterator[None]:
        """Turns a write that fails, as on a full disk, into a TrainError; rank 0 gives the space back."""
        from safetensors import SafetensorError

        try:
            yield
        except (OSError, RuntimeError, SafetensorError, TrainError) as error:
            if is_out_of_memory(error):
                raise
            if self.accelerator.is_main_process:
                shutil.rmtree(staging, ignore_errors=True)
            if isinstance(error, TrainError):
                raise
            raise TrainError(
                f"cannot be written: {first_line(error)}", where=str(staging.parent), fix="make room, then use --resume"
            ) from error

    def collect(self) -> None:
        """Ends a writing that is done in this rank, without waiting; raises the error that it ended with."""
        if self.current and not self.current.thread.is_alive():
            self.end(self.current)

    def wait(self) -> None:
        """Waits until nothing is being written by any rank; raises the error that it ended with."""
        if self.current is None:
            return
        self.current.thread.join()
        while self.current.error is None and self.current.staging.exists():  # rank 0 is not done
            time.sleep(POLL_SECONDS)
        self.end(self.current)

    def end(self, current: Writing) -> None:
        """What comes after a writing."""
        self.current = None
        if current.error:
            raise current.error
        current.after()
