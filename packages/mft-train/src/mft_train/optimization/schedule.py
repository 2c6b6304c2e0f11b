"""The learning rate of every step in closed form, so that a resumed run continues it exactly."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from mft_train.errors import TrainError

if TYPE_CHECKING:
    from mft_train.config.config import RunConfig


def num_run_steps(steps_per_epoch: int, config: RunConfig) -> int:
    """Optimizer steps of the run; raises TrainError if its warm-up would never end."""
    num_steps = config.max_steps or (config.epochs or 0) * steps_per_epoch
    if config.warmup_steps >= num_steps:
        raise TrainError(
            f"warmup_steps {config.warmup_steps} is not below the {num_steps} steps of the run",
            fix="lower it, or set warmup_ratio instead",
        )
    return num_steps


def num_warmup_steps(num_steps: int, config: RunConfig) -> int:
    """Optimizer steps of warm-up in a run of `num_steps`; a share is rounded to the nearest step."""
    return config.warmup_steps or round(config.warmup_ratio * num_steps)


def learning_rate_at(step: int, num_steps: int, config: RunConfig) -> float:
    """The learning rate of optimizer step `step`, counted from 0 to `num_steps - 1`.

    Linear from learning_rate / warm-up steps to learning_rate during warm-up, then the schedule's decay, which reaches
    min_learning_rate one step after the last. The minimum is no floor during warm-up.
    """
    peak, low, warmup = config.learning_rate, config.min_learning_rate, num_warmup_steps(num_steps, config)
    if step < warmup:
        return peak * (step + 1) / warmup
    progress = (step - warmup) / max(1, num_steps - warmup)
    if config.schedule == "constant":
        return peak
    if config.schedule == "linear":
        return peak + (low - peak) * progress
    return low + (peak - low) * (1 + math.cos(math.pi * progress)) / 2
