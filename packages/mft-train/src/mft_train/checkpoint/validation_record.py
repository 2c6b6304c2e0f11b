"""What the validations and evaluations of a run have shown so far: the lowest of every score, the best checkpoints.

A score is a number by name, lower is better: `mean` and `worst` over the scored tasks, `task/NAME` of each of them, and
the number of the evaluation command under the name that `evaluation_score` gives it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Self

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping

    from mft_train.config.config import RunConfig

TOLERATED_RISE = 0.02  # of a guard task's loss, as a share of its first
TASK = "task/"  # before the name of a task that is a score of its own


@dataclass(frozen=True, slots=True)
class Lowest:
    """The lowest value of a score so far, its step, and how many later values in a row were not lower.

    A value that is not finite is never the lowest; `value` is None before the first that is.
    """

    value: float | None = None
    step: int = 0
    num_worse: int = 0

    def after(self, value: float, step: int) -> Lowest:
        """The lowest with one more value."""
        if math.isfinite(value) and (self.value is None or value < self.value):
            return Lowest(value, step)
        return replace(self, num_worse=self.num_worse + 1)


@dataclass(frozen=True, slots=True)
class ValidationRecord:
    """The lowest of every score over all validations, and over those of steps with a checkpoint.

    `first` and `last` are the losses of the first and the last validation by task, in nats per token; `last_step` is
    the step of the last that came to its end. `rule` is the score that the best checkpoint is chosen by, `tasks` are
    those that are trained, and `unevaluated` the steps whose evaluation has not been counted yet, in order.
    """

    first: dict[str, float] = field(default_factory=dict)
    last: dict[str, float] = field(default_factory=dict)
    last_step: int | None = None
    seen: dict[str, Lowest] = field(default_factory=dict)
    checkpoints: dict[str, Lowest] = field(default_factory=dict)
    rule: str = "mean"
    tasks: tuple[str, ...] = ()
    unevaluated: tuple[int, ...] = ()

    @classmethod
    def from_json(cls, document: Mapping[str, Any]) -> Self:
        """The record that a checkpoint has kept; JSON has null for what was not finite."""

        def losses(name: str) -> dict[str, float]:
            return {task: math.nan if loss is None else loss for task, loss in document[name].items()}

        def lowest(name: str) -> dict[str, Lowest]:
            return {score: Lowest(**saved) for score, saved in document[name].items()}

        return cls(
            first=losses("first"),
            last=losses("last"),
            last_step=document["last_step"],
            seen=lowest("seen"),
            checkpoints=lowest("checkpoints"),
            rule=document["rule"],
            tasks=tuple(document["tasks"]),
            unevaluated=tuple(document["unevaluated"]),
        )

    def under(self, rule: str, tasks: Collection[str]) -> ValidationRecord:
        """The record of a run that chooses its best checkpoint by `rule` from now on, and trains on `tasks`.

        The best one by another rule may have been deleted: it is chosen anew. Scores over other tasks begin anew.
        """
        stale = set() if tuple(tasks) == self.tasks else {"mean", "worst"}
        seen = {name: lowest for name, lowest in self.seen.items() if name not in stale}
        stale |= set() if rule == self.rule else {rule}
        checkpoints = {name: lowest for name, lowest in self.checkpoints.items() if name not in stale}
        return replace(self, rule=rule, tasks=tuple(tasks), seen=seen, checkpoints=checkpoints)

    def after_validation(self, losses: dict[str, float], step: int) -> ValidationRecord:
        """The record with one more validation: the loss of every task with validation rows."""
        first = {**losses, **self.first}
        return replace(
            self,
            first=first,
            last=losses,
            last_step=step,
            seen=after(self.seen, validation_scores(losses, first, self.tasks), step),
        )

    def after_checkpoint(self, step: int) -> ValidationRecord:
        """The record with a checkpoint of this step, which counts if the step was validated."""
        if self.last_step != step:
            return self
        scores = validation_scores(self.last, self.first, self.tasks)
        return replace(self, checkpoints=after(self.checkpoints, scores, step))

    def after_evaluation(self, score: str, value: float, step: int) -> ValidationRecord:
        """The record with the score that the evaluation of this step's checkpoint came to."""
        found = {score: value}
        return replace(self, seen=after(self.seen, found, step), checkpoints=after(self.checkpoints, found, step))

    def after_evaluations(self, config: RunConfig, found: Mapping[int, float | None]) -> ValidationRecord:
        """The record with every evaluation that it waited for, whose numbers are `found` by step."""
        record = self
        for step in self.unevaluated:
            if (number := found.get(step)) is not None:
                record = record.after_evaluation(evaluation_score(config), turned(number, config.evaluation_goal), step)
        return replace(record, unevaluated=())

    @property
    def best(self) -> Lowest | None:
        """The best checkpoint's score and step; None if there is none."""
        return self.best_of(self.rule)

    def best_of(self, score: str) -> Lowest | None:
        """The value and step of the checkpoint with the lowest score; None if no checkpoint has one."""
        lowest = self.checkpoints.get(score)
        return lowest if lowest and lowest.value is not None else None

    def is_stalled(self, scores: Collection[str], patience: int) -> bool:
        """Whether `patience` values in a row of each of these scores were not lower; never with a patience of 0."""
        counts = [self.seen.get(score, Lowest()).num_worse for score in scores]
        return patience > 0 and bool(counts) and min(counts) >= patience

    def risen(self, guards: Collection[str]) -> dict[str, float]:
        """The guard tasks whose last loss is more than 2 % above their first, and by which share of it."""
        rises = {task: relative(self.last[task], self.first[task]) - 1 for task in guards if task in self.last}
        return {task: rise for task, rise in rises.items() if rise > TOLERATED_RISE}


def after(lowest: Mapping[str, Lowest], scores: Mapping[str, float], step: int) -> dict[str, Lowest]:
    """The lowest values with one more of each score that is given."""
    return {**lowest, **{name: lowest.get(name, Lowest()).after(value, step) for name, value in scores.items()}}


def scored_tasks(losses: Mapping[str, float], tasks: Collection[str]) -> list[str]:
    """The tasks whose losses are averaged and compared: the trained ones; all, if none of those is validated."""
    return [task for task in losses if task in tasks] or list(losses)


def mean_loss(losses: Mapping[str, float], tasks: Collection[str]) -> float:
    """The plain mean of the losses of the scored tasks."""
    scored = scored_tasks(losses, tasks)
    return sum(losses[task] for task in scored) / len(scored)


def validation_scores(
    losses: Mapping[str, float], first: Mapping[str, float], tasks: Collection[str]
) -> dict[str, float]:
    """The scores of one validation: `mean`; `worst`, the largest loss relative to its first; each task's loss."""
    scored = scored_tasks(losses, tasks)
    return {
        "mean": mean_loss(losses, tasks),
        "worst": max(relative(losses[task], first[task]) for task in scored),
        **{f"{TASK}{task}": losses[task] for task in scored},
    }


def relative(loss: float, first: float) -> float:
    """A loss over the task's first one, not finite if one of them is not; 1 if both are 0."""
    if not math.isfinite(loss) or not math.isfinite(first):
        return math.inf
    if first == 0:
        return 1.0 if loss == 0 else math.inf
    return loss / first


def evaluation_score(config: RunConfig) -> str:
    """The name of the evaluation's score, which is another one with another number or goal."""
    return f"evaluation/{config.evaluation_goal}/{config.evaluation_metric}"


def best_score(config: RunConfig) -> str:
    """The name of the score by which the best checkpoint is chosen."""
    return evaluation_score(config) if config.best_rule == "evaluation" else config.best_rule


def stopping_scores(config: RunConfig, record: ValidationRecord) -> list[str]:
    """The names of the scores of which all have to stall for an early stop."""
    rule = config.early_stopping_rule or config.best_rule
    if rule == "tasks":
        return [f"{TASK}{task}" for task in scored_tasks(record.last, record.tasks)]
    return [evaluation_score(config) if rule == "evaluation" else rule]


def stop_values(config: RunConfig, record: ValidationRecord) -> dict[str, Any]:
    """What the event of an early stop tells: its rule, and the step and number of the best, by task if that is it."""
    scores = stopping_scores(config, record)
    lowest = [record.seen[score] for score in scores]
    if config.early_stopping_rule == "tasks":
        tasks = [score.removeprefix(TASK) for score in scores]
        return {
            "rule": "tasks",
            "best_steps": {task: best.step for task, best in zip(tasks, lowest, strict=True)},
            "best_losses": {task: best.value for task, best in zip(tasks, lowest, strict=True)},
        }
    *names, (name, value) = described(scores[0], lowest[0].value).items()
    return {**dict(names), "best_step": lowest[0].step, f"best_{name}": value}


def described(score: str, value: float | None) -> dict[str, Any]:
    """The rule of a score in words, and its number as it was measured."""
    rule, _, rest = score.partition("/")
    if rule == "mean":
        return {"rule": rule, "loss": value}
    if rule == "worst":
        return {"rule": rule, "ratio": value}
    goal, _, metric = rest.partition("/")
    return {"rule": rule, "metric": metric, "value": None if value is None else turned(value, goal)}


def turned(value: float, goal: str) -> float:
    """An evaluation's number as a score, which is lower where it is better; or the number of a score."""
    return -value if goal == "higher" else value
