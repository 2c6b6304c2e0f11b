"""SIGTERM and SIGINT as a wish that all ranks agree on between steps, so that a checkpoint comes before the end."""

from __future__ import annotations

import signal
import sys
from typing import TYPE_CHECKING, Any, Self

import click

if TYPE_CHECKING:
    from accelerate import Accelerator

SIGNALS = (signal.SIGTERM, signal.SIGINT)


class Interrupts:
    """Notes the signals that arrive while it is entered.

    A second signal changes nothing: a launcher may pass on one that the terminal has already sent to all ranks.
    """

    def __init__(self, *, is_talking: bool) -> None:
        self.is_talking = is_talking
        self.received: set[int] = set()
        self.previous: dict[int, Any] = {}

    def __enter__(self) -> Self:
        self.previous = {number: signal.signal(number, self.note) for number in SIGNALS}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self.previous.items():
            signal.signal(number, handler)

    def note(self, number: int, _frame: object) -> None:
        """Remembers a signal; says once what will happen."""
        if self.is_talking and not self.received:
            name = signal.Signals(number).name
            # Not err=True, by which click would write past the live view that stands in for sys.stderr.
            click.echo(f"{name}: a checkpoint is written after this step, then the run ends", file=sys.stderr)
        self.received.add(number)

    def agreed(self, accelerator: Accelerator) -> int | None:
        """The signal that any rank has received; all ranks call this together and get the same answer."""
        import torch

        flags = torch.tensor([float(number in self.received) for number in SIGNALS], device=accelerator.device)
        found = accelerator.reduce(flags, reduction="sum").tolist()
        return next((int(number) for number, count in zip(SIGNALS, found, strict=True) if count), None)
