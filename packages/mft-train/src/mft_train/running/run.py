"""The training loop of one rank: steps, validations and checkpoints, with an event for each."""

from __future__ import annotations

import signal
import time
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from mft_train.checkpoint.best_models import keep_best_models
from mft_train.checkpoint.checkpoint import RunState, save_checkpoint, step_dir, step_name
from mft_train.checkpoint.checkpoint_list import retain
from mft_train.checkpoint.validation_record import mean_loss, stop_values, stopping_scores
from mft_train.optimization.schedule import learning_rate_at
from mft_train.running.evaluation import Evaluations
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
    best_tasks: tuple[str, ...]  # whose best model is kept
    evaluations: Evaluations

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
            self.evaluations.advance(metrics)
            state, interrupt = self.after_step(metrics, state, interrupts)
        self.writer.wait()
        if interrupt:
            self.evaluations.stop()
        if not interrupt and state.global_step < self.num_steps:
            metrics.write("early_stop", global_step=state.global_step, **stop_values(self.config, state.validation))
        return state, interrupt

    def is_over(self, state: RunState) -> bool:
        """Whether no step is left to be made."""
        record = state.validation
        is_stalled = record.is_stalled(stopping_scores(self.config, record), self.config.early_stopping_patience)
        return state.global_step >= self.num_steps or is_stalled

    def is_validation_due(self, state: RunState) -> bool:
        """Whether this step is one to validate after, and has not been."""
        step = state.global_step
        is_edge = step in (0, self.num_steps)
        return (is_edge or is_due(step, self.config.validation_interval)) and state.validation.last_step != step

    def is_evaluation_due(self, state: RunState) -> bool:
        """Whether this step's checkpoint is one to evaluate: by the interval, and the last one."""
        if not self.config.evaluation_command or not state.global_step:
            return False
        interval = self.config.evaluation_interval or self.config.checkpoint_interval
        return self.is_over(state) or is_due(state.global_step, interval)

    def resume_evaluations(self, state: RunState) -> RunState:
        """Takes up the evaluations that are not counted yet, but for that of a checkpoint that is about to be anew."""
        steps = state.validation.unevaluated if self.config.evaluation_command else ()
        if self.is_validation_due(state):
            steps = tuple(step for step in steps if step != state.global_step)
        self.evaluations.resume(steps)
        return replace(state, validation=replace(state.validation, unevaluated=steps))

    def count_evaluations(
        self, metrics: MetricsWriter, state: RunState, interrupts: Interrupts
    ) -> tuple[RunState, int | None]:
        """Waits for the evaluations of earlier checkpoints, which count from here on, or for a signal."""
        found, interrupt = self.evaluations.settle(self.engine.accelerator, metrics, interrupts)
        if interrupt:
            return state, interrupt
        return replace(state, validation=state.validation.after_evaluations(self.config, found)), None

    def last_evaluations(self, metrics: MetricsWriter, state: RunState, interrupts: Interrupts) -> RunState:
        """Waits for the evaluations that are left after the last step, and names the best; a signal ends them."""
        if not self.config.evaluation_command:
            return state
        state, interrupt = self.count_evaluations(metrics, state, interrupts)
        self.evaluations.stop()
        if not interrupt:
            self.retain(state, self.config.keep_last)
        return state

    def after_step(
        self, metrics: MetricsWriter, state: RunState, interrupts: Interrupts
    ) -> tuple[RunState, int | None]:
        """Validates and writes a checkpoint where that is due; the state then, and a signal that ends the run.

        A signal cuts a validation short: it is made anew after the resume. The last step always has a checkpoint.
        """
        if self.is_validation_due(state):
            record = self.validate(metrics, state.validation, state.global_step, interrupts)
            state = replace(state, validation=record)
        interrupt = interrupts.agreed(self.engine.accelerator)
        if not interrupt and self.is_evaluation_due(state):
            state, interrupt = self.count_evaluations(metrics, state, interrupts)
        is_checkpoint = interrupt or self.is_over(state) or is_due(state.global_step, self.config.checkpoint_interval)
        if is_checkpoint and state.global_step:
            state = self.save_checkpoint(metrics, state)
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
    ) -> ValidationRecord:
        """Writes the validation event of this step: task losses, the mean of those that are trained, perplexities.

        Returns the record with it. Without rows, or cut short by a signal, there is no event.
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
            return record
        loss = mean_loss(losses, record.tasks)
        metrics.write(
            "validation",
            global_step=global_step,
            loss=loss,
            task_losses=losses,
            perplexity=perplexity(loss),
            task_perplexities={task: perplexity(value) for task, value in losses.items()},
        )
        return record.after_validation(losses, global_step)

    def write_train_event(
        self, metrics: MetricsWriter, global_step: int, learning_rate: float, result: StepResult, rate: float
    ) -> None:
        """Writes the train event of this step."""
        names = [task.name for task in self.dataset.tasks]
        losses = {name: loss for name, loss in zip(names, result.task_losses, strict=True) if loss is not None}
        metrics.write(
            "train",
            global_step=global_step,
            num_steps=self.num_steps,
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

    def save_checkpoint(self, metrics: MetricsWriter, state: RunState) -> RunState:
        """Begins the checkpoint of this step, whose end has its event and lets go of old ones; the state saved."""
        record = state.validation.after_checkpoint(state.global_step)
        is_evaluated = self.is_evaluation_due(state)
        if is_evaluated:
            record = replace(record, unevaluated=(*record.unevaluated, state.global_step))
        state = replace(state, validation=record)
        target = step_dir(self.run_dir, state.global_step)

        def after() -> None:
            self.retain(state, self.config.keep_last)
            write_checkpoint_event(metrics, state.global_step)
            if is_evaluated:
                self.evaluations.add(state.global_step)

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

    def retain(self, state: RunState, keep_last: int) -> None:
        """Keeps the best models and, of the checkpoints, the best and the latest `keep_last`, all for 0; on rank 0."""
        if self.engine.accelerator.is_main_process:
            keep_best_models(self.run_dir, state.validation, self.best_tasks)
            retain(self.run_dir, state.validation, state.global_step, keep_last)


def write_checkpoint_event(metrics: MetricsWriter, global_step: int) -> None:
    """Says that the checkpoint of a step is there."""
    metrics.write("checkpoint", global_step=global_step, path=f"checkpoints/{step_name(global_step)}")


def is_due(global_step: int, interval: int) -> bool:
    """Whether something that happens every `interval` steps happens after this one; never for 0."""
    return interval > 0 and global_step % interval == 0
