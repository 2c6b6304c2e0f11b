"""The run directory while a run has it: locked, shared by all machines, and free of what killed runs left."""

from __future__ import annotations

import atexit
import contextlib
from typing import TYPE_CHECKING

import click

from mft_train.engine.shared_dir import check_shared
from mft_train.rows.shared_memory import one_at_a_time, remove_stale
from mft_train.running.run_lock import sole_run

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from accelerate import Accelerator

    from mft_train.engine.world import World


@contextlib.contextmanager
def locked_output(accelerator: Accelerator, run_dir: Path, world: World) -> Iterator[None]:
    """Keeps other runs out of the run directory, which all ranks share; it is not left behind if nothing came of it."""
    with contextlib.ExitStack() as stack:
        if world.is_main:
            is_new = not run_dir.exists()
            run_dir.mkdir(parents=True, exist_ok=True)
            if is_new:
                stack.callback(remove_if_empty, run_dir)
            stack.enter_context(sole_run(run_dir))
        accelerator.wait_for_everyone()
        check_shared(run_dir, world)
        yield


def remove_if_empty(directory: Path) -> None:
    """Deletes a directory that holds nothing."""
    with contextlib.suppress(OSError):
        directory.rmdir()


@contextlib.contextmanager
def sole_start(accelerator: Accelerator) -> Iterator[None]:
    """All ranks of this run inside, and no other run of their machines: streaming's shared memory is made there."""
    with contextlib.ExitStack() as stack:
        if accelerator.is_local_main_process:
            stack.enter_context(one_at_a_time())
        accelerator.wait_for_everyone()
        yield
        accelerator.wait_for_everyone()


def sweep_shared_memory(accelerator: Accelerator) -> None:
    """Removes stale shared memory of streaming, and at the end of each rank what streaming leaves even then."""
    if accelerator.is_local_main_process and (removed := remove_stale()):
        click.echo(f"removed {removed} shared-memory segments that a killed run had left", err=True)
    # Registered before streaming registers its own clean-up, this runs after it.
    atexit.register(remove_stale)
