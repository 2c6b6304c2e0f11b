"""Training in one process, a rank of the world: from a validated config to a finished run directory."""

from __future__ import annotations

import math
import os
import shutil
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mft_train import checkpoint
from mft_train.checkpoint import RunState
from mft_train.config_file import write_config
from mft_train.dataset_dir import DatasetDir, open_dataset
from mft_train.errors import TrainError
from mft_train.metrics import MetricsWriter
from mft_train.model import check_isolation, load_model, resolve_dtype
from mft_train.optimizer import build_optimizer
from mft_train.row_stream import RowStream, StreamPosition, check_mixture
from mft_train.schedule import learning_rate_at
from mft_train.train_step import StepResult, accumulate_gradients
from mft_train.validation import validate

if TYPE_CHECKING:
    import torch
    from accelerate import Accelerator
    from torch import Tensor, nn

    from mft_train.config import RunConfig


def check_inputs(config: RunConfig, world_size: int) -> DatasetDir:
    """The dataset, after every check that needs no model; raises TrainError."""
    rows, unit = config.global_batch_size, config.micro_batch_size * world_size
    if rows % unit:
        raise TrainError(
            f"global_batch_size {rows} is not a multiple of micro_batch_size {config.micro_batch_size} "
            f"x {world_size} processes",
            fix=f"set it to {max(1, round(rows / unit)) * unit}",
        )
    dataset = open_dataset(config.dataset)
    check_mixture(dataset, config.mixture)
    names = [task.name for task in dataset.tasks]
    unknown = sorted(set(config.loss.task_weights) - set(names))
    if unknown:
        raise TrainError(f'loss.task_weights names unknown task "{unknown[0]}"', fix=f"tasks: {', '.join(names)}")
    return dataset


def check_output(run_dir: Path, *, is_resume: bool, is_overwrite: bool) -> None:
    """Raises TrainError if the run directory holds something that neither flag allows for."""
    if run_dir.exists() and not run_dir.is_dir():
        raise TrainError(f'output "{run_dir}" is not a directory', fix="choose another output")
    is_used = run_dir.is_dir() and any(run_dir.iterdir())
    if is_used and not is_resume and not is_overwrite:
        raise TrainError(f'output "{run_dir}" is not empty', fix="choose another, or use --resume or --overwrite")
    if is_used and is_overwrite and not (run_dir / "config.yaml").is_file():
        raise TrainError(f'output "{run_dir}" is not a run directory, it is not overwritten', fix="choose another")
    if is_resume and not is_used:
        raise TrainError(f'output "{run_dir}" has nothing to resume', fix="start without --resume")


def train(config: RunConfig, *, is_resume: bool = False, is_overwrite: bool = False) -> Path:
    """Trains or resumes, as one rank of the world; the path of `final/`."""
    import torch
    from accelerate import Accelerator
    from accelerate.utils import set_seed

    on_cpu = not torch.cuda.is_available()
    if on_cpu:
        os.environ.setdefault("DS_ACCELERATOR", "cpu")  # DeepSpeed, imported by peft, would warn of what it detects
    compute = resolve_dtype(config, torch.device("cpu" if on_cpu else "cuda"))
    accelerator = Accelerator(cpu=on_cpu, mixed_precision="bf16" if compute == "bfloat16" else "no")
    dataset = check_inputs(config, accelerator.num_processes)
    run_dir = Path(config.output)
    check_output(run_dir, is_resume=is_resume, is_overwrite=is_overwrite)
    set_seed(config.seed)
    model = load_model(config, dataset, accelerator.device)
    check_isolation(model, compute)
    accelerator.wait_for_everyone()
    if accelerator.is_main_process:
        if is_overwrite:
            shutil.rmtree(run_dir, ignore_errors=True)
        run_dir.mkdir(parents=True, exist_ok=True)
        write_config(config, run_dir / "config.yaml")
    accelerator.wait_for_everyone()
    optimizer = build_optimizer(model, config)
    model, optimizer = accelerator.prepare(model, optimizer)
    set_seed(config.seed, device_specific=True)
    rank, world_size = accelerator.process_index, accelerator.num_processes
    stream = RowStream(dataset, config.mixture, config.global_batch_size, config.seed, rank, world_size)
    num_steps = config.max_steps or (config.epochs or 0) * stream.steps_per_epoch
    run = Run(config, dataset, accelerator, model, optimizer, stream, num_steps, run_dir)
    resumed = checkpoint.latest_checkpoint(run_dir) if is_resume else None
    state = run.load(resumed) if resumed else RunState(0, StreamPosition())
    with MetricsWriter(run_dir, state.global_step, num_steps, is_active=accelerator.is_main_process) as metrics:
        if resumed:
            metrics.write("resume", global_step=state.global_step, checkpoint=resumed.name)
        run.loop(metrics, state)
    if accelerator.is_main_process:
        checkpoint.save_model(accelerator.unwrap_model(model), dataset.tokenizer_dir, run_dir / "final")
    accelerator.wait_for_everyone()
    accelerator.end_training()
    return run_dir / "final"


@dataclass(frozen=True, slots=True)
class Run:
    """The parts of a run that stay the same from its first step to its last."""

    config: RunConfig
    dataset: DatasetDir
    accelerator: Accelerator
    model: nn.Module
    optimizer: torch.optim.Optimizer
    stream: RowStream
    num_steps: int
    run_dir: Path

    @property
    def fingerprint(self) -> dict[str, Any]:
        """What must not change between a checkpoint and its resume."""
        names = ("method", "global_batch_size", "mixture", "seed")
        return {"dataset": self.dataset.manifest_sha256, **{name: getattr(self.config, name) for name in names}}

    def task_weights(self) -> Tensor:
        """The weight of every task, in task order: (num_tasks,) float64."""
        import torch

        weights = [self.config.loss.task_weights.get(task.name, 1.0) for task in self.dataset.tasks]
        return torch.tensor(weights, dtype=torch.float64, device=self.accelerator.device)

    def load(self, source: Path) -> RunState:
        """Restores everything from a checkpoint of this run; raises TrainError."""
        return checkpoint.load_checkpoint(self.accelerator, self.model, self.optimizer, self.fingerprint, source)

    def loop(self, metrics: MetricsWriter, state: RunState) -> None:
        """Optimizer steps from `state` to the last, with validation, checkpoints and their events."""
        config = self.config
        if state.global_step == 0:
            self.validate(metrics, 0)
        steps = self.stream.steps(state.position)
        tokens, seconds = 0, 0.0
        for global_step in range(state.global_step + 1, self.num_steps + 1):
            started = time.perf_counter()
            step_rows = next(steps)
            learning_rate = learning_rate_at(global_step - 1, self.num_steps, config)
            result = self.step(step_rows.rows, learning_rate, global_step)
            tokens, seconds = tokens + result.tokens, seconds + time.perf_counter() - started
            is_last = global_step == self.num_steps
            if is_last or global_step % config.log_interval == 0:
                self.write_train_event(metrics, global_step, learning_rate, result, tokens / seconds)
                tokens, seconds = 0, 0.0
            if is_last or (config.validation_interval and global_step % config.validation_interval == 0):
                self.validate(metrics, global_step)
            if config.checkpoint_interval and global_step % config.checkpoint_interval == 0:
                self.save_checkpoint(metrics, RunState(global_step, step_rows.next_position))
        metrics.write("end", global_step=self.num_steps)

    def step(self, rows: list, learning_rate: float, global_step: int) -> StepResult:
        """One optimizer step; raises TrainError before it if the loss or the gradient is not finite."""
        result = accumulate_gradients(
            self.accelerator,
            self.model,
            rows,
            micro_batch_size=self.config.micro_batch_size,
            reduction=self.config.loss.reduction,
            task_weights=self.task_weights(),
            max_grad_norm=self.config.max_grad_norm,
        )
        if not result.is_finite:
            raise self.not_finite(result, global_step)
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate
        self.optimizer.step()
        self.optimizer.zero_grad()
        return result

    def not_finite(self, result: StepResult, global_step: int) -> TrainError:
        """The error for a step that would spoil the weights."""
        pairs = zip(self.dataset.tasks, result.task_losses, strict=True)
        tasks = [task.name for task, loss in pairs if loss is not None and not math.isfinite(loss)]
        culprits = f"the loss of {', '.join(tasks)}" if tasks else f"the gradient norm {result.grad_norm}"
        return TrainError(
            f"step {global_step} stopped before the update: {culprits} is not finite",
            where=str(self.run_dir),
            fix="lower learning_rate, or look at the rows of this step",
        )

    def validate(self, metrics: MetricsWriter, global_step: int) -> None:
        """Writes the validation event of this step: task losses and their plain mean; nothing without rows."""
        losses = validate(self.accelerator, self.model, self.dataset)
        if losses:
            loss = sum(losses.values()) / len(losses)
            metrics.write("validation", global_step=global_step, loss=loss, task_losses=losses)

    def write_train_event(
        self, metrics: MetricsWriter, global_step: int, learning_rate: float, result: StepResult, rate: float
    ) -> None:
        """Writes the train event of this step."""
        names = [task.name for task in self.dataset.tasks]
        losses = {name: loss for name, loss in zip(names, result.task_losses, strict=True) if loss is not None}
        metrics.write(
            "train",
            global_step=global_step,
            loss=result.loss,
            task_losses=losses,
            task_weights=dict(zip(names, self.task_weights().tolist(), strict=True)),
            learning_rate=learning_rate,
            grad_norm=result.grad_norm,
            supervised_tokens=result.supervised_tokens,
            tokens=result.tokens,
            tokens_per_second=round(rate, 1),
        )

    def save_checkpoint(self, metrics: MetricsWriter, state: RunState) -> None:
        """Writes the checkpoint of this step and its event."""
        target = checkpoint.step_dir(self.run_dir, state.global_step)
        checkpoint.save_checkpoint(
            self.accelerator,
            self.model,
            self.optimizer,
            state,
            self.fingerprint,
            self.dataset.tokenizer_dir,
            target,
        )
        metrics.write("checkpoint", global_step=state.global_step, path=f"checkpoints/{target.name}")
