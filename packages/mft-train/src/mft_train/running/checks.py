"""Checks that a run begins with, before any model is loaded."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

from mft_train.balancing.balance import check_balancer
from mft_train.config.config_file import parse_yaml
from mft_train.engine.start import check_engine
from mft_train.errors import TrainError
from mft_train.model.compute import settle_compute
from mft_train.optimization.optimizer import check_optimizer
from mft_train.rows.dataset_dir import DatasetDir, open_dataset
from mft_train.rows.guards import guarded
from mft_train.rows.mixture import drawn_dataset
from mft_train.rows.remote import Cache
from mft_train.tracking.trackers import check_trackers

if TYPE_CHECKING:
    import torch

    from mft_train.config.config import RunConfig
    from mft_train.model.compute import Compute


def check_inputs(config: RunConfig, world_size: int) -> DatasetDir:
    """The dataset, after every check that needs no model; raises TrainError."""
    rows, unit = config.global_batch_size, config.micro_batch_size * world_size
    if rows % unit:
        raise TrainError(
            f"global_batch_size {rows} is not a multiple of micro_batch_size {config.micro_batch_size} "
            f"x {world_size} processes",
            fix=f"set it to {max(1, round(rows / unit)) * unit}",
        )
    check_engine(config, world_size)
    dataset = drawn_dataset(guarded(open_dataset(config.dataset, cache_of(config)), config), config)
    check_balancer(config, dataset)
    check_trackers(config)
    check_best(config, dataset)
    is_by_losses = (config.early_stopping_rule or config.best_rule) != "evaluation"
    if config.early_stopping_patience and is_by_losses and not any(task.validation_rows for task in dataset.tasks):
        raise TrainError(
            "early_stopping_patience needs validation rows, the dataset has none",
            where=str(dataset.path),
            fix="build it with validation rows, or remove early_stopping_patience",
        )
    return dataset


def check_best(config: RunConfig, dataset: DatasetDir) -> None:
    """Raises TrainError if the best model is asked for of a task that has none."""
    known = [task.name for task in dataset.trained_tasks if task.validation_rows]
    asked = config.best_of_tasks if isinstance(config.best_of_tasks, list) else []
    unknown = sorted(set(asked) - set(known))
    if unknown:
        raise TrainError(
            f'best_of_tasks names "{unknown[0]}", which is not trained and validated',
            fix=f"tasks: {', '.join(known)}" if known else "remove best_of_tasks",
        )


def cache_of(config: RunConfig) -> Cache:
    """Where this machine keeps datasets of stores."""
    settings = config.cache
    home = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    directory = Path(settings.directory) if settings.directory else Path(home) / "mft-train"
    limit = settings.limit
    if isinstance(limit, str):
        limit = int(float(limit[:-2]) * 1024 ** (1 + ("kb", "mb", "gb", "tb").index(limit[-2:])))
    return Cache(directory.absolute(), limit, settings.timeout_seconds)


def check_device(config: RunConfig, device: torch.device) -> Compute:
    """How the run computes on a device of this kind; raises TrainError for settings that it cannot run."""
    compute = settle_compute(config, device)
    check_optimizer(config, device)
    return compute


# What a run directory can hold, beside what a killed run was writing or deleting.
RUN_NAMES = {
    *("config.yaml", "metrics.jsonl", "checkpoints", "best", "final", "evaluations"),
    *("tensorboard", "trackers.json", "wandb"),
}


def check_is_run(run_dir: Path) -> None:
    """Raises TrainError if a directory is not that of a run, or holds anything that no run puts there."""
    path = run_dir / "config.yaml"
    settings = parse_yaml(path.read_text(encoding="utf-8"), str(path))[0] if path.is_file() else {}
    if not {"model", "dataset", "output"} <= settings.keys():
        raise TrainError(f'output "{run_dir}" is not a run directory, it is not overwritten', fix="choose another")
    for entry in sorted(run_dir.iterdir()):
        is_unfinished = entry.match(".*.partial") or entry.match(".*.deleted")
        if entry.name not in RUN_NAMES and not is_unfinished:
            what = f'output "{run_dir}" holds "{entry.name}", which no run put there, it is not overwritten'
            raise TrainError(what, fix="move it away, or choose another")


def check_output(run_dir: Path, *, is_resume: bool, is_overwrite: bool) -> None:
    """Raises TrainError if the run directory holds something that neither flag allows for."""
    if run_dir.exists() and not run_dir.is_dir():
        raise TrainError(f'output "{run_dir}" is not a directory', fix="choose another output")
    is_used = run_dir.is_dir() and any(not path.match(".*.partial") for path in run_dir.iterdir())
    if is_used and not is_resume and not is_overwrite:
        raise TrainError(f'output "{run_dir}" is not empty', fix="choose another, or use --resume or --overwrite")
    if is_used and is_overwrite:
        check_is_run(run_dir)
    if is_resume and not is_used:
        raise TrainError(f'output "{run_dir}" has nothing to resume', fix="start without --resume")
