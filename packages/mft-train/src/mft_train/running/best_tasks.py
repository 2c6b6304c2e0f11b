"""What a run says of single tasks: of whose best model is kept, at its start, and of guard tasks, at its end."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from mft_train.checkpoint.best_models import candidates, free_disk, kept_tasks
from mft_train.checkpoint.weights import num_bytes
from mft_train.planning.memory import readable
from mft_train.rows.guards import guard_names

if TYPE_CHECKING:
    from pathlib import Path

    from torch import nn

    from mft_train.checkpoint.validation_record import ValidationRecord
    from mft_train.config.config import RunConfig
    from mft_train.engine.start import Engine
    from mft_train.rows.dataset_dir import DatasetDir


def find_best_tasks(
    config: RunConfig, dataset: DatasetDir, engine: Engine, model: nn.Module, run_dir: Path
) -> tuple[str, ...]:
    """The tasks whose best model is kept; of full models, rank 0 says so with their size."""
    if not engine.accelerator.is_main_process:
        return ()
    parameters = engine.accelerator.unwrap_model(model).parameters()
    size = sum(num_bytes(parameter) for parameter in parameters if parameter.requires_grad)
    kept = kept_tasks(config, dataset, size, run_dir)
    if config.method == "full" and (wanted := len(candidates(config, dataset))):
        told = "are kept in best/" if kept else "are not kept, best_of_tasks: true keeps them"
        free = readable(free_disk(run_dir))
        click.echo(
            f"the best models of {len(kept) or wanted} tasks {told}: up to {readable((len(kept) or wanted) * size)} on "
            f"disk beside the checkpoints, {free} are free",
            err=True,
        )
    return tuple(kept)


def risen_guards(dataset: DatasetDir, record: ValidationRecord, *, is_talking: bool) -> dict[str, dict[str, float]]:
    """What the last event says of guard tasks whose loss has risen by more than 2 %, as shares; said on stderr too."""
    risen = record.risen(guard_names(dataset))
    if is_talking:
        for task, rise in risen.items():
            losses = f"from {record.first[task]:.4f} to {record.last[task]:.4f}"
            click.echo(f'guard task "{task}": its loss rose by {rise:.1%}, {losses}', err=True)
    return {"risen_guards": risen} if risen else {}
