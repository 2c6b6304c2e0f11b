"""The task weights of a run as it goes: when its balancer is updated, on which rows, and what a checkpoint keeps."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from mft_train.balancing.balancers import task_weights
from mft_train.balancing.probe import Probe
from mft_train.errors import TrainError
from mft_train.loss.task_losses import task_losses

if TYPE_CHECKING:
    from accelerate import Accelerator
    from torch import Tensor, nn

    from mft_train.config.config import RunConfig
    from mft_train.loss.loss_head import LossHead
    from mft_train.rows.dataset_dir import DatasetDir


def check_balancer(config: RunConfig, dataset: DatasetDir) -> None:
    """Raises TrainError if weights are given for unknown tasks or a task has no rows for the probe."""
    names = [task.name for task in dataset.tasks]
    unknown = sorted(set(config.loss.task_weights) - set(names))
    if unknown:
        raise TrainError(f'loss.task_weights names unknown task "{unknown[0]}"', fix=f"tasks: {', '.join(names)}")
    if config.loss.task_counts == "expected" and dataset.is_weighted:
        raise TrainError(
            "loss.task_counts: expected does not know the weights of this dataset's records",
            where=str(dataset.path),
            fix="set it to batch, or build the dataset without weights",
        )
    blind = [task.name for task in dataset.trained_tasks if not task.validation_rows]
    if blind and config.loss.balancer != "static":
        raise TrainError(
            f'task "{blind[0]}" has no validation rows, which balancer {config.loss.balancer} measures',
            where=str(dataset.path),
            fix="build the dataset with validation rows for every task, or set loss.balancer: static",
        )


class TaskBalance:
    """Task weights in use and the balancer's state.

    The balancer knows the tasks with training rows; any other task has weight 1, which no token uses.
    """

    def __init__(self, config: RunConfig, dataset: DatasetDir, saved: dict[str, Any] | None = None) -> None:
        self.loss = config.loss
        self.run_dir = config.output
        self.micro_batch_size = config.micro_batch_size
        self.num_tasks = len(dataset.tasks)
        self.tasks = dataset.trained_tasks
        self.probe = None
        if self.loss.balancer != "static":
            self.probe = Probe(dataset, self.tasks, self.loss.probe_rows, config.seed, self.loss.probe_tasks)
        saved = saved or {"task_weights": [1.0] * self.num_tasks, "state": {}}
        self.task_weights: list[float] = saved["task_weights"]
        self.state: dict[str, Any] = saved["state"]

    def to_json(self) -> dict[str, Any]:
        """What a checkpoint keeps: `saved` of the balance that goes on from it."""
        return {"task_weights": self.task_weights, "state": self.state}

    def weights(self, accelerator: Accelerator) -> Tensor:
        """The weight of every task, in task order: (num_tasks,) float64."""
        import torch

        return torch.tensor(self.task_weights, dtype=torch.float64, device=accelerator.device)

    def update(self, accelerator: Accelerator, model: nn.Module, loss_head: LossHead, global_step: int) -> None:
        """Sets the weights for step `global_step` (from 1) if it is one of the balancer's; all ranks together."""
        update, steps_since = divmod(global_step - 1, self.loss.balancer_interval)
        if steps_since:
            return
        losses: list[float | None] = [None] * len(self.tasks)
        if self.probe:
            losses = self.probe_losses(self.probe, accelerator, model, loss_head, update)
        names = [task.name for task in self.tasks]
        weights, self.state = task_weights(self.loss, names, self.state, losses)
        self.task_weights = [1.0] * self.num_tasks
        for task, weight in zip(self.tasks, weights, strict=True):
            self.task_weights[task.task_id] = weight

    def probe_losses(
        self, probe: Probe, accelerator: Accelerator, model: nn.Module, loss_head: LossHead, update: int
    ) -> list[float | None]:
        """The loss of every trained task, None if this update does not measure it; raises TrainError for infinity."""
        rows = probe.rows(update, accelerator.process_index, accelerator.num_processes)
        losses = task_losses(accelerator, model, loss_head, rows, self.num_tasks, self.micro_batch_size)
        spoilt = [task.name for task in self.tasks if not math.isfinite(losses[task.task_id] or 0.0)]
        if spoilt:
            global_step = 1 + update * self.loss.balancer_interval
            raise TrainError(
                f"step {global_step} stopped before the update: the probe loss of {', '.join(spoilt)} is not finite",
                where=self.run_dir,
                fix="lower learning_rate",
            )
        return [losses[task.task_id] for task in self.tasks]
