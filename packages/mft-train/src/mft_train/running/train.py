"""Training in one process, a rank of the world: from a validated config to a finished run directory."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from mft_train.balancing.balance import TaskBalance
from mft_train.checkpoint.checkpoint import (
    RunState,
    load_adapter,
    load_checkpoint,
    read_run,
    save_model,
)
from mft_train.checkpoint.checkpoint_list import clear, latest_checkpoint, remove_unfinished
from mft_train.checkpoint.fingerprint import changed_settings, fingerprint
from mft_train.checkpoint.publish import discard
from mft_train.checkpoint.validation_record import best_score
from mft_train.checkpoint.weights import Origin
from mft_train.checkpoint.writer import CheckpointWriter
from mft_train.config.config_file import write_config
from mft_train.engine.same_base import check_same_base
from mft_train.engine.start import description, start_engine
from mft_train.errors import TrainError
from mft_train.loss.loss_head import LossHead
from mft_train.loss.router_loss import find_router_loss
from mft_train.model.base_weights import base_identity, model_dir, tensors_fingerprint
from mft_train.model.compiled_layers import check_compile, compile_layers
from mft_train.model.compute import run_device
from mft_train.model.initial_factors import take_from_base
from mft_train.model.isolation import check_isolation
from mft_train.model.load import check_model_dir, load_model, loading
from mft_train.model.stored_weights import forget_sources, has_sources
from mft_train.optimization.optimizer import build_optimizer
from mft_train.optimization.schedule import num_run_steps
from mft_train.planning.memory import free_bytes, settle_checkpointing
from mft_train.planning.task_shares import task_shares, warning
from mft_train.rows.mixture import expected_counts, proportions
from mft_train.rows.row_stream import RowStream, StreamPosition
from mft_train.rows.tokenizer_match import check_tokenizer
from mft_train.running.best_tasks import find_best_tasks, risen_guards
from mft_train.running.checks import check_device, check_inputs, check_output
from mft_train.running.evaluation import Evaluations
from mft_train.running.interrupts import Interrupts
from mft_train.running.output import locked_output, sole_start, sweep_shared_memory
from mft_train.running.run import Run, write_checkpoint_event
from mft_train.tracking.metrics import MetricsWriter, is_told

if TYPE_CHECKING:
    from accelerate import Accelerator
    from torch import Tensor
    from transformers import PreTrainedModel

    from mft_train.config.config import RunConfig
    from mft_train.engine.start import Engine
    from mft_train.engine.world import World
    from mft_train.model.compute import Compute
    from mft_train.rows.dataset_dir import DatasetDir


def settle_for_all_ranks(
    config: RunConfig, compute: Compute, dataset: DatasetDir, accelerator: Accelerator, world: World
) -> Compute:
    """How the run computes, with `gradient_checkpointing` decided by the rank that has the least free memory."""
    import torch

    device = accelerator.device
    free = torch.tensor([free_bytes(device, world.local_world_size)], device=device)
    least = int(accelerator.gather(free).min())
    return settle_checkpointing(config, compute, dataset, world.world_size, least, is_talking=world.is_main)


def train(
    config: RunConfig, world: World, *, is_resume: bool = False, is_overwrite: bool = False, is_forced: bool = False
) -> Path:
    """Trains or resumes, as one rank of the world; the path of `final/`."""
    from accelerate.utils import set_seed

    compute = check_device(config, run_device())
    dataset = check_inputs(config, world.world_size)
    engine = start_engine(config, world, compute)
    accelerator = engine.accelerator
    compute = replace(compute, device=accelerator.device)
    run_dir = Path(config.output)
    check_output(run_dir, is_resume=is_resume, is_overwrite=is_overwrite)
    if world.is_main:
        if world.world_size > 1:
            click.echo(description(engine, world, compute), err=True)
        check_tokenizer(config, dataset, is_forced=is_forced)
    compute = settle_for_all_ranks(config, compute, dataset, accelerator, world)
    check_compile(config, compute)
    with locked_output(accelerator, run_dir, world):
        start = find_start(config, compute, dataset, world, is_resume=is_resume, is_forced=is_forced)
        if not engine.is_filled:
            check_same_base(config.model, world)
        set_seed(config.seed)
        model = load_weights(config, compute, dataset, engine, world, start.checkpoint)
        accelerator.wait_for_everyone()
        if world.is_main:
            clear(run_dir) if is_overwrite else remove_unfinished(run_dir)
        sweep_shared_memory(accelerator)
        accelerator.wait_for_everyone()
        model, optimizer = engine.prepare(model, lambda model: build_optimizer(model, config))
        loss_head = checked_loss(config, compute, dataset, accelerator, accelerator.unwrap_model(model))
        if config.compile:
            compile_layers(accelerator.unwrap_model(model))
        set_seed(config.seed, device_specific=True)
        with sole_start(accelerator):
            stream = open_stream(config, dataset, world)
        state = RunState(0, StreamPosition())
        if start.checkpoint:
            state = load_checkpoint(engine, model, optimizer, start.checkpoint, start.changed)
        num_steps = num_run_steps(stream.steps_per_epoch, config)
        if world.is_main and (line := warning(task_shares(dataset, config, num_steps))):
            click.echo(line, err=True)
        names = [task.name for task in dataset.trained_tasks]
        state = replace(state, validation=state.validation.under(best_score(config), names))
        run = Run(
            compute.settled(config),
            dataset,
            engine,
            model,
            loss_head,
            optimizer,
            stream,
            TaskBalance(config, dataset, state.balance),
            CheckpointWriter(accelerator, is_background(config, compute)),
            start.fingerprint,
            find_origin(config, dataset, world),
            batch_counts(config, dataset, accelerator),
            num_steps,
            run_dir,
            find_best_tasks(config, dataset, engine, model, run_dir),
            Evaluations(config, run_dir, world.is_main),
        )
        run_to_end(run, state, start.checkpoint)
    return run_dir / "final"


@dataclass(frozen=True, slots=True)
class Start:
    """Where a run begins: its fingerprint, the checkpoint that it goes on from, and the settings changed since."""

    fingerprint: dict[str, Any]
    checkpoint: Path | None = None
    changed: frozenset[str] = frozenset()


def find_start(
    config: RunConfig, compute: Compute, dataset: DatasetDir, world: World, *, is_resume: bool, is_forced: bool
) -> Start:
    """Where the run begins; raises TrainError if its checkpoint is of another run."""
    from accelerate.utils import broadcast_object_list

    (base,) = broadcast_object_list([identify(config.model) if world.is_main else None])
    expected = fingerprint(config, compute, dataset, base)
    found = find_checkpoint(Path(config.output), is_talking=world.is_main) if is_resume else None
    if found is None:
        return Start(expected)
    saved = read_run(found)["fingerprint"]
    changed = changed_settings(saved, expected, found, is_forced=is_forced, is_talking=world.is_main)
    return Start(expected, found, frozenset(changed))


def find_origin(config: RunConfig, dataset: DatasetDir, world: World) -> Origin:
    """What travels with the weights; rank 0, which writes it, looks at the base's files if that is an adapter."""
    is_wanted = world.is_main and config.method != "full"
    fingerprint = tensors_fingerprint(model_dir(config.model)) if is_wanted else None
    return Origin(dataset.tokenizer_dir, dataset.manifest_sha256, fingerprint)


def load_weights(
    config: RunConfig, compute: Compute, dataset: DatasetDir, engine: Engine, world: World, checkpoint: Path | None
) -> PreTrainedModel:
    """The model with the weights to begin with, or a hollow one that the engine fills; raises TrainError."""
    from accelerate.utils import set_seed

    weights_dir = checkpoint / "model" if checkpoint else None
    full_dir = weights_dir if config.method == "full" else None
    is_main = engine.accelerator.is_main_process
    if engine.is_filled:
        model = load_model(config, compute, dataset, full_dir, is_placed=False, is_hollow=True)
        if all_read_shares(config, model, world, full_dir):
            if is_main and weights_dir and not full_dir:
                load_adapter(model, weights_dir, config.lora.init)
            return model
        if not is_main:
            check_ties(config, model)
            return model
        set_seed(config.seed)  # an adapter begins as it would in one process
    model = load_model(config, compute, dataset, full_dir, is_placed=not engine.is_filled)
    if engine.is_filled:
        check_ties(config, model)
    if config.method != "full" and not (weights_dir and load_adapter(model, weights_dir, config.lora.init)):
        take_from_base(model, config.lora.init)
    return model


def check_ties(config: RunConfig, model: PreTrainedModel) -> None:
    """Raises TrainError, in every rank, if rank 0 has read two weights where hollow models have one, tied."""
    from accelerate.utils import gather_object

    if len(set(gather_object([len(list(model.parameters()))]))) > 1:
        raise TrainError(
            f'model "{config.model}" ties weights by its config.json, its files hold different ones',
            fix="set tie_word_embeddings to false there",
        )


def all_read_shares(config: RunConfig, model: PreTrainedModel, world: World, full_dir: Path | None) -> bool:
    """Whether every rank finds its shares of a hollow model in files; else they are left to rank 0.

    Raises TrainError, in every rank, if machines have different bases.
    """
    from accelerate.utils import gather_object

    is_shared = all(gather_object([has_sources(model)]))
    if not is_shared:
        forget_sources(model)
    elif full_dir is None:
        check_same_base(config.model, world)
    return is_shared


def checked_loss(
    config: RunConfig, compute: Compute, dataset: DatasetDir, accelerator: Accelerator, model: PreTrainedModel
) -> LossHead:
    """The loss of a model that is ready to train; raises TrainError for one that cannot be trained."""
    with accelerator.autocast():  # as in training: some kernels know no other type
        check_isolation(model, compute.dtype, is_packed=dataset.is_packed or config.micro_batch_size > 1)
        return LossHead(model, find_router_loss(model, config))


def is_background(config: RunConfig, compute: Compute) -> bool:
    """Whether checkpoints are written while training goes on: where the copy costs the device nothing, if left open."""
    wanted = config.background_checkpoints
    return compute.device.type == "cuda" if wanted == "auto" else wanted


def batch_counts(config: RunConfig, dataset: DatasetDir, accelerator: Accelerator) -> Tensor | None:
    """What an average batch holds of every task, (2, num_tasks) float64, where the loss divides by that."""
    import torch

    if config.loss.task_counts == "batch":
        return None
    return torch.tensor(expected_counts(dataset, config), dtype=torch.float64, device=accelerator.device)


def open_stream(config: RunConfig, dataset: DatasetDir, world: World) -> RowStream:
    """This rank's training rows."""
    return RowStream(
        dataset,
        proportions(dataset.trained_tasks, config),
        config.global_batch_size,
        config.seed,
        world.rank,
        world.world_size,
        config.repeats,
        world.num_nodes,
    )


def identify(model: str) -> str:
    """The base model's identity; raises TrainError if it cannot be found out."""
    check_model_dir(model)
    with loading(model):
        return base_identity(model)


def run_to_end(run: Run, state: RunState, resumed: Path | None) -> None:
    """Runs from `state` on and writes `final/`; raises click's Exit if a signal ended the run after a checkpoint.

    Signals that come once the last step is done wait until `final/` is there, and change nothing.
    """
    accelerator, run_dir = run.engine.accelerator, run.run_dir
    is_main = accelerator.is_main_process
    final = run_dir / "final"
    if state.global_step > run.num_steps:
        raise TrainError(
            f"the checkpoint has done {state.global_step} steps, this run has {run.num_steps}",
            where=str(resumed),
            fix="give it more steps, or train into another output",
        )
    if is_main:
        write_config(run.config, run_dir / "config.yaml")
        if resumed:
            run.retain(state, keep_last=0)
        if not run.is_over(state):
            discard(final)  # of a run that was shorter
    with (
        MetricsWriter(run.config, run_dir, state.global_step, run.num_steps, is_active=is_main) as metrics,
        Interrupts(is_talking=is_main) as interrupts,
        run.evaluations,
        run.writer,
    ):
        if resumed:
            if is_main and not is_told(run_dir / "metrics.jsonl", "checkpoint", state.global_step):
                write_checkpoint_event(metrics, state.global_step)  # a kill came between
            metrics.write("resume", global_step=state.global_step, checkpoint=resumed.name)
        state, interrupt = run.loop(metrics, run.resume_evaluations(state), interrupts)
        # A tracker may wait long for its server when it is closed: the model comes first.
        if not interrupt:
            save_model(run.writer, run.engine, run.model, run.origin, final)
            state = run.last_evaluations(metrics, state, interrupts)
            metrics.write(
                "end", global_step=state.global_step, **risen_guards(run.dataset, state.validation, is_talking=is_main)
            )
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
