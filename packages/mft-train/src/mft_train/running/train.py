"""Training in one process, a rank of the world: from a validated config to a finished run directory."""

from __future__ import annotations

import atexit
import contextlib
import os
from pathlib import Path
from typing import TYPE_CHECKING

import click

from mft_train.balancing.balance import TaskBalance, check_balancer
from mft_train.checkpoint import checkpoint
from mft_train.checkpoint.checkpoint import RunState
from mft_train.checkpoint.checkpoint_list import clear, latest_checkpoint, remove_unfinished, retain
from mft_train.config.config_file import write_config
from mft_train.errors import TrainError
from mft_train.loss.loss_head import LossHead
from mft_train.loss.router_loss import find_router_loss
from mft_train.model.compiled_layers import check_compile, compile_layers
from mft_train.model.isolation import check_isolation
from mft_train.model.load import load_model, resolve_attention, resolve_dtype, run_device
from mft_train.optimization.optimizer import build_optimizer, check_optimizer
from mft_train.optimization.schedule import num_run_steps
from mft_train.planning.memory import free_bytes, settle_checkpointing
from mft_train.rows.dataset_dir import DatasetDir, open_dataset
from mft_train.rows.mixture import drawn_dataset
from mft_train.rows.row_stream import RowStream, StreamPosition
from mft_train.rows.shared_memory import remove_stale
from mft_train.rows.tokenizer_match import check_tokenizer
from mft_train.running.interrupts import Interrupts
from mft_train.running.run import Run, fingerprint
from mft_train.running.run_lock import sole_run
from mft_train.tracking.metrics import MetricsWriter
from mft_train.tracking.trackers import check_trackers

if TYPE_CHECKING:
    from collections.abc import Iterator

    import torch
    from accelerate import Accelerator

    from mft_train.config.config import RunConfig


def check_inputs(config: RunConfig, world_size: int) -> DatasetDir:
    """The dataset, after every check that needs no model; raises TrainError."""
    rows, unit = config.global_batch_size, config.micro_batch_size * world_size
    if rows % unit:
        raise TrainError(
            f"global_batch_size {rows} is not a multiple of micro_batch_size {config.micro_batch_size} "
            f"x {world_size} processes",
            fix=f"set it to {max(1, round(rows / unit)) * unit}",
        )
    dataset = drawn_dataset(open_dataset(config.dataset), config)
    check_balancer(config, dataset)
    check_trackers(config)
    if config.early_stopping_patience and not any(task.validation_rows for task in dataset.tasks):
        raise TrainError(
            "early_stopping_patience needs validation rows, the dataset has none",
            where=str(dataset.path),
            fix="build it with validation rows, or remove early_stopping_patience",
        )
    return dataset


def check_device(config: RunConfig, device: torch.device) -> None:
    """Raises TrainError for settings that a device of this kind cannot run."""
    resolve_attention(config, device)
    check_optimizer(config, device)


def check_output(run_dir: Path, *, is_resume: bool, is_overwrite: bool) -> None:
    """Raises TrainError if the run directory holds something that neither flag allows for."""
    if run_dir.exists() and not run_dir.is_dir():
        raise TrainError(f'output "{run_dir}" is not a directory', fix="choose another output")
    is_used = run_dir.is_dir() and any(not path.match(".*.partial") for path in run_dir.iterdir())
    if is_used and not is_resume and not is_overwrite:
        raise TrainError(f'output "{run_dir}" is not empty', fix="choose another, or use --resume or --overwrite")
    if is_used and is_overwrite and not (run_dir / "config.yaml").is_file():
        raise TrainError(f'output "{run_dir}" is not a run directory, it is not overwritten', fix="choose another")
    if is_resume and not is_used:
        raise TrainError(f'output "{run_dir}" has nothing to resume', fix="start without --resume")


def settle_for_all_ranks(config: RunConfig, dataset: DatasetDir, accelerator: Accelerator) -> RunConfig:
    """The config with `gradient_checkpointing` decided by the rank that has the least free memory."""
    import torch

    device, is_main = accelerator.device, accelerator.is_main_process
    free = torch.tensor([free_bytes(device, int(os.environ["LOCAL_WORLD_SIZE"]))], device=device)
    least = int(accelerator.gather(free).min())
    return settle_checkpointing(config, dataset, device, accelerator.num_processes, least, is_talking=is_main)


def train(config: RunConfig, *, is_resume: bool = False, is_overwrite: bool = False, is_forced: bool = False) -> Path:
    """Trains or resumes, as one rank of the world; the path of `final/`."""
    from accelerate import Accelerator
    from accelerate.utils import set_seed

    device = run_device()
    check_device(config, device)
    on_cpu = device.type == "cpu"
    if on_cpu:
        os.environ.setdefault("DS_ACCELERATOR", "cpu")  # DeepSpeed, imported by peft, would warn of what it detects
    compute = resolve_dtype(config, device)
    accelerator = Accelerator(cpu=on_cpu, mixed_precision="bf16" if compute == "bfloat16" else "no")
    dataset = check_inputs(config, accelerator.num_processes)
    run_dir = Path(config.output)
    check_output(run_dir, is_resume=is_resume, is_overwrite=is_overwrite)
    if accelerator.is_main_process:
        check_tokenizer(config, dataset, is_forced=is_forced)
    settled = settle_for_all_ranks(config, dataset, accelerator)
    check_compile(settled, device)
    set_seed(config.seed)
    model = load_model(settled, dataset, accelerator.device)
    check_isolation(model, compute, is_packed=dataset.is_packed or config.micro_batch_size > 1)
    accelerator.wait_for_everyone()
    with ready_output(accelerator, run_dir, is_overwrite=is_overwrite):
        sweep_shared_memory(accelerator)
        accelerator.wait_for_everyone()
        loss_head = LossHead(model, find_router_loss(model, config))
        if config.compile:
            compile_layers(model)
        optimizer = build_optimizer(model, config)
        model, optimizer = accelerator.prepare(model, optimizer)
        set_seed(config.seed, device_specific=True)
        rank, world_size = accelerator.process_index, accelerator.num_processes
        stream = RowStream(
            dataset, config.mixture, config.global_batch_size, config.seed, rank, world_size, config.repeats
        )
        state = RunState(0, StreamPosition())
        resumed = find_checkpoint(run_dir, is_talking=accelerator.is_main_process) if is_resume else None
        if resumed:
            expected = fingerprint(config, dataset)
            state = checkpoint.load_checkpoint(accelerator, model, optimizer, expected, resumed, is_forced=is_forced)
        balance = TaskBalance(config, dataset, state.balance)
        num_steps = num_run_steps(stream.steps_per_epoch, config)
        run = Run(config, dataset, accelerator, model, loss_head, optimizer, stream, balance, num_steps, run_dir)
        run_to_end(run, state, resumed)
    return run_dir / "final"


@contextlib.contextmanager
def ready_output(accelerator: Accelerator, run_dir: Path, *, is_overwrite: bool) -> Iterator[None]:
    """Keeps other runs out of the run directory, which is empty on demand and holds nothing unfinished."""
    if not accelerator.is_main_process:
        yield
        return
    run_dir.mkdir(parents=True, exist_ok=True)
    with sole_run(run_dir):
        if is_overwrite:
            clear(run_dir)
        remove_unfinished(run_dir)
        yield


def sweep_shared_memory(accelerator: Accelerator) -> None:
    """Removes stale shared memory of streaming, and at the end of each rank what streaming leaves even then."""
    if accelerator.is_local_main_process and (removed := remove_stale()):
        click.echo(f"removed {removed} shared-memory segments that a killed run had left", err=True)
    # Registered before streaming registers its own clean-up, this runs after it.
    atexit.register(remove_stale)


def run_to_end(run: Run, state: RunState, resumed: Path | None) -> None:
    """Runs from `state` on and writes `final/`; raises click's Exit if a signal ended the run after a checkpoint."""
    accelerator, run_dir = run.accelerator, run.run_dir
    is_main = accelerator.is_main_process
    if is_main:
        write_config(run.config, run_dir / "config.yaml")
        if resumed:
            retain(run_dir, state.validation, state.global_step, keep_last=0)
    with MetricsWriter(run.config, run_dir, state.global_step, run.num_steps, is_active=is_main) as metrics:
        with Interrupts(is_talking=is_main) as interrupts:
            if resumed:
                metrics.write("resume", global_step=state.global_step, checkpoint=resumed.name)
            interrupt = run.loop(metrics, state, interrupts)
        # A tracker may wait long for its server when it is closed: the model comes first.
        if is_main and not interrupt:
            checkpoint.save_model(accelerator.unwrap_model(run.model), run.dataset.tokenizer_dir, run_dir / "final")
    accelerator.wait_for_everyone()
    accelerator.end_training()
    if interrupt:
        raise click.exceptions.Exit(128 + interrupt)


def find_checkpoint(run_dir: Path, *, is_talking: bool) -> Path | None:
    """The checkpoint to resume from, None to begin at the first step; says what is skipped."""
    found, damaged = latest_checkpoint(run_dir)
    if is_talking:
        for path, reason in damaged:
            click.echo(f"checkpoint {path.name} is damaged and skipped: {reason}", err=True)
        if found is None:
            click.echo("no checkpoint yet: the run begins at its first step", err=True)
    return found
