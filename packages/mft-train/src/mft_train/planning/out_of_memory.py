"""A failed allocation as one line: how much was asked for, and which settings to change first."""

from __future__ import annotations

import contextlib
import re
from typing import TYPE_CHECKING

from mft_train.errors import TrainError, is_out_of_memory

if TYPE_CHECKING:
    from collections.abc import Iterator

    from mft_train.config.config import RunConfig

AMOUNT = re.compile(r"tried to allocate ([\d.]+) ?([KMGT]iB|bytes)", re.IGNORECASE)


@contextlib.contextmanager
def memory_advice(config: RunConfig) -> Iterator[None]:
    """Turns a failed allocation, of any allocator, into a TrainError."""
    try:
        yield
    except (MemoryError, OSError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        amount = AMOUNT.search(str(error))
        wanted = f": {readable(float(amount[1]), amount[2])} more could not be had" if amount else ""
        raise TrainError(f"out of memory{wanted}", fix=advice(config)) from error


def advice(config: RunConfig) -> str:
    """What to change so that a run needs less memory, in the order of what it costs."""
    steps = []
    if config.micro_batch_size > 1:
        steps.append("micro_batch_size: 1 (same result)")
    if config.gradient_checkpointing is not True:
        steps.append("gradient_checkpointing: true (same result, about a third more time)")
    if config.method == "full":
        if config.optimizer == "adamw":
            steps.append("optimizer: adamw_8bit")
        steps.append("method: lora")
    elif config.method == "lora":
        steps.append("method: qlora")
    if config.method != "full" and config.lora.rank > 16:
        steps.append("a smaller lora.rank")
    steps.append("a dataset with shorter rows (`mft-data build --seq-length`)")
    return "set in this order as far as needed: " + ", ".join(steps)


def readable(amount: float, unit: str) -> str:
    """An amount of memory, bytes as GiB."""
    return f"{amount / 2**30:,.2f} GiB" if unit.lower() == "bytes" else f"{amount:g} {unit}"
