"""What the validations of a run have shown so far: the best loss, how long ago it was, the best checkpoint."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace


@dataclass(frozen=True, slots=True)
class ValidationRecord:
    """The best validation so far, the validations since without a better one, and the best checkpoint.

    Losses are in nats per token and None before the first validation. A checkpoint can be the best only if its own
    step was validated. `last_step` is the step of the last validation that came to its end.
    """

    best_loss: float | None = None
    best_step: int = 0
    num_worse: int = 0
    checkpoint_loss: float | None = None
    checkpoint_step: int | None = None
    last_step: int | None = None

    def after_validation(self, loss: float, global_step: int) -> ValidationRecord:
        """The record with one more validation; a loss that is not finite is never the best."""
        if is_better(loss, self.best_loss):
            return replace(self, best_loss=loss, best_step=global_step, num_worse=0, last_step=global_step)
        return replace(self, num_worse=self.num_worse + 1, last_step=global_step)

    def after_checkpoint(self, loss: float | None, global_step: int) -> ValidationRecord:
        """The record with one more checkpoint; `loss` is the validation loss of its step, None without one."""
        if loss is None or not is_better(loss, self.checkpoint_loss):
            return self
        return replace(self, checkpoint_loss=loss, checkpoint_step=global_step)

    def is_stalled(self, patience: int) -> bool:
        """Whether `patience` validations in a row were not better; never with a patience of 0."""
        return patience > 0 and self.num_worse >= patience


def is_better(loss: float, best: float | None) -> bool:
    """Whether a loss is a number below the best one so far."""
    return math.isfinite(loss) and (best is None or loss < best)
