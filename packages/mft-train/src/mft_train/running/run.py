"""The training loop of one rank: steps, validations and checkpoints, with an event for each."""

from __future__ import annotations

import signal
import time
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from mft_train.checkpoint.checkpoint import RunState, save_checkpoint, step_dir, step_name
from mft_train.checkpoint.checkpoint_list import retain
from mft_train.optimization.schedule import learning_rate_at
from mft_train.running.not_finite import not_finite
from mft_train.running.train_step import StepResult, accumulate_gradients
from mft_train.running.validation import validate
from mft_train.tracking.peak_memory import peak_memory_bytes
from mft_train.tracking.perplexity import perplexity

if TYPE_CHECKING:
    from pathlib import Path

    import torch
    from torch import Tensor, nn

    from mft_train.balancing.balance import TaskBalance
    from mft_train.checkpoint.validation_record import ValidationRecord
    from mft_train.checkpoint.weights import Origin
    from mft_train.checkpoint.writer import CheckpointWriter
    from mft_train.config.config import RunConfig
    from mft_train.engine.start import Engine
    from mft_train.loss.loss_head import LossHead
    from mft_train.rows.dataset_dir import DatasetDir
    from mft_train.rows.row_stream import RowStream, StepRows
    from mft_train.running.interrupts import Interrupts
    from mft_train.tracking.metrics import MetricsWriter


@dataclass(frozen=True, slots=True)
class Run:
    """The parts of a run that stay the same from its first step to its last."""

    config: RunConfig
    dataset: DatasetDir
    engine: Engine
    model: nn.Module
    loss_head: LossHead
    optimizer: torch.optim.Optimizer
    stream: RowStream
    balance: TaskBalance
    writer: CheckpointWriter
    fingerprint: dict[str, Any]
    origin: Origin
    expected_counts: Tensor | None
    num_steps: int
    run_dir: Path

    def loop(self, metrics: MetricsWriter, state: RunState, interrupts: Interrupts) -> tuple[RunState, int | None]:
        """Optimizer steps from `state` to the last, with validation, checkpoints and their events.

        Ends early if validations have stalled, or after a checkpoint if a signal has come. Returns the last state, and
        that signal.
        """
        steps = self.stream.steps(state.position)
        tokens, seconds, interrupt = 0, 0.0, None
        if self.is_validation_due(state):  # before the first step, or one that a signal cut short
            state, interrupt = self.after_step(metrics, state, interrupts)
        while not interrupt and not self.is_over(state):
            global_step = state.global_step + 1
            started = time.perf_counter()
            step_rows = next(steps)
            learning_rate = learning_rate_at(state.global_step, self.num_steps, self.config)
            self.balance.update(self.engine.accelerator, self.model, self.loss_head, global_step)
            result = self.step(step_rows, learning_rate, global_step)
            tokens, seconds = tokens + result.tokens, seconds + time.perf_counter() - started
            if global_step == self.num_steps or global_step % self.config.log_interval == 0:
                self.write_train_event(metrics, global_step, learning_rate, result, tokens / seconds)
                tokens, seconds = 0, 0.0
            state = replace(
                state,
                global_step=global_step,
                position=step_rows.next_position,
                balance=self.balance.to_json(),
            )
            self.writer.collect()
            state, interrupt = self.after_step(metrics, state, interrupts)
        self.writer.wait()
        if not interrupt and state.global_step < self.num_steps:
            best = {"best_step": state.validation.best_step, "best_loss": state.validation.best_loss}
            metrics.write("early_stop", global_step=state.global_step, **best)
        return state, interrupt

    def is_over(self, state: RunState) -> bool:
        """Whether no step is left to be made."""
        is_stalled = state.validation.is_stalled(self.config.early_stopping_patience)
        return state.global_step >= self.num_steps or is_stalled

    def is_validation_due(self, state: RunState) -> bool:
        """Whether this step is one to validate after, and has not been."""
        step = state.global_step
        is_edge = step in (0, self.num_steps)
        return (is_edge or is_due(step, self.config.validation_interval)) and state.validation.last_step != step

    def after_step(
        self, metrics: MetricsWriter, state: RunState, interrupts: Interrupts
    ) -> tuple[RunState, int | None]:
        """Validates and writes a checkpoint where that is due; the state then, and a signal that ends the run.

        A signal cuts a validation short: it is made anew after the resume. The last step always has a checkpoint.
        """
        loss = None
        if self.is_validation_due(state):
            record, loss = self.validate(metrics, state.validation, state.global_step, interrupts)
            state = replace(state, validation=record)
        interrupt = interrupts.agreed(self.engine.accelerator)
        is_checkpoint = interrupt or self.is_over(state) or is_due(state.global_step, self.config.checkpoint_interval)
        if is_checkpoint and state.global_step:
            state = self.save_checkpoint(metrics, state, loss)
        if interrupt:
            self.writer.wait()
            name = signal.Signals(interrupt).name
            metrics.write("interrupt", global_step=state.global_step, signal=name)
        return state, interrupt

    def step(self, step_rows: StepRows, learning_rate: float, global_step: int) -> StepResult:
        """One optimizer step; raises TrainError before it if the loss or the gradient is not finite."""
        result = accumulate_gradients(
            self.engine,
            self.model,
            self.optimizer,
            self.loss_head,
            step_rows.rows,
            micro_batch_size=self.config.micro_batch_size,
            reduction=self.config.loss.reduction,
            task_weights=self.balance.weights(self.engine.accelerator),
            max_grad_norm=self.config.max_grad_norm,
            expected_counts=self.expected_counts,
        )
        if not result.is_finite:
            raise not_finite(self.engine.accelerator, self.model, self.dataset, step_rows, result, global_step)
        self.engine.step(self.model, self.optimizer, learning_rate)
        return result

    def validate(
        self, metrics: MetricsWriter, record: ValidationRecord, global_step: int, interrupts: Interrupts
    ) -> tuple[ValidationRecord, float | None]:
        """Writes the validation event of this step: task losses, their plain mean, perplexities.

        Returns the record with it, and the mean. Without rows, or cut short by a signal, there is neither.
        """
        accelerator = self.engine.accelerator
        losses = validate(
            accelerator,
            self.model,
            self.loss_head,
            self.dataset,
            self.config,
            lambda: bool(interrupts.agreed(accelerator)),
        )
        if not losses:
            return record, None
        loss = sum(losses.values()) / len(losses)
        metrics.write(
            "validation",
            global_step=global_step,
            loss=loss,
            task_losses=losses,
            perplexity=perplexity(loss),
            task_perplexities={task: perplexity(value) for task, value in losses.items()},
        )
        return record.after_validation(loss, global_step), loss

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
            **({"router_loss": result.router_loss} if self.loss_head.router else {}),
            task_losses=losses,
            task_weights={task.name: self.balance.task_weights[task.task_id] for task in self.dataset.trained_tasks},
            task_shares={task.name: result.task_shares[task.task_id] for task in self.dataset.trained_tasks},
            learning_rate=learning_rate,
            grad_norm=result.grad_norm,
            supervised_tokens=result.supervised_tokens,
            tokens=result.tokens,
            tokens_per_second=round(rate, 1),
            peak_memory_bytes=peak_memory_bytes(),
        )

    def save_checkpoint(self, metrics: MetricsWriter, state: RunState, loss: float | None) -> RunState:
        """Begins the checkpoint of this step, whose end has its event and lets go of old ones; the state that is saved.

        `loss` is the validation loss of this step, None without one.
        """
        state = replace(state, validation=state.validation.after_checkpoint(loss, state.global_step))
        target = step_dir(self.run_dir, state.global_step)

        def after() -> None:
            if self.engine.accelerator.is_main_process:
                retain(self.run_dir, state.validation, state.global_step, self.config.keep_last)
            write_checkpoint_event(metrics, state.global_step)

        save_checkpoint(
            self.writer,
            self.engine,
            self.model,
            self.optimizer,
            state,
            self.fingerprint,
            self.origin,
            target,
            after,
        )
        return state


def write_checkpoint_event(metrics: MetricsWriter, global_step: int) -> None:
    """Says that the checkpoint of a step is there."""
    metrics.write("checkpoint", global_step=global_step, path=f"checkpoints/{step_name(global_step)}")


def is_due(global_step: int, interval: int) -> bool:
    """Whether something that happens every `interval` steps happens after this one; never for 0."""
    return interval > 0 and global_step % interval == 0
