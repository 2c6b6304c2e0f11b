"""The multi-task objective: its reduction, its balancer, and what that measures."""

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from mft_train.config.section import NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt, Section


class SelfPacedConfig(Section):
    """The balancer of MFTCoder 0.3."""

    history_length: Annotated[int, Field(ge=2)] = Field(
        10, description="measurements of a task that its slope is fitted to; weights are equal before"
    )
    scale: PositiveFloat = Field(50.0, description="sharpness: larger moves the weights further from equal")


class CobaConfig(Section):
    """The convergence balancer."""

    warmup_updates: NonNegativeInt = Field(3, description="measurements of a task with equal weights at the start")
    history_length: Annotated[int, Field(ge=2)] = Field(
        10, description="measurements of a task that its slope is fitted to"
    )
    tau: PositiveFloat = Field(5.0, description="how soon a diverging task takes over; larger is sooner")


class FamoConfig(Section):
    """Fast adaptive multitask optimization."""

    learning_rate: PositiveFloat = Field(0.025, description="Adam's rate for the task logits")
    decay: NonNegativeFloat = Field(0.001, description="pull of the task logits towards equal weights")


class FocalConfig(Section):
    """Focal weights on tasks."""

    gamma: NonNegativeFloat = Field(2.0, description="exponent of 1 - mean token probability; 0 is equal weights")


class LossConfig(Section):
    """How token losses of many tasks become one objective."""

    reduction: Literal["token_mean", "sample_mean", "task_mean", "task_sample_mean"] = Field(
        "task_mean", description="what is averaged over the global batch"
    )
    balancer: Literal["static", "self_paced", "coba", "famo", "focal"] = Field(
        "static", description="where the task weights come from; all but static measure validation rows in training"
    )
    task_weights: dict[str, PositiveFloat] = Field(
        {}, description="task to weight, for balancer static; a task that is not named has weight 1"
    )
    task_counts: Literal["batch", "expected"] = Field(
        "batch",
        description="what divides the losses of a task: its tokens in the batch, or those that a batch has on average, "
        "which keeps its share where many batches lack it",
    )
    balancer_interval: PositiveInt = Field(10, description="optimizer steps between updates of the balancer")
    probe_rows: PositiveInt = Field(8, description="validation rows of each task that are measured, always the same")
    probe_tasks: PositiveInt | None = Field(
        1, description="tasks that an update measures, in turn, after a first one that measures all; null: all of them"
    )
    weight_floor: Annotated[float, Field(gt=0, lt=1)] = Field(
        0.1, description="least weight of a task where equal weights are 1, for every balancer but static"
    )
    router_aux_loss_coef: NonNegativeFloat | None = Field(
        None, description="weight of the load-balancing loss of a mixture of experts; null: the model's own, 0: none"
    )
    self_paced: SelfPacedConfig = Field(SelfPacedConfig(), description="for balancer self_paced")
    coba: CobaConfig = Field(CobaConfig(), description="for balancer coba")
    famo: FamoConfig = Field(FamoConfig(), description="for balancer famo")
    focal: FocalConfig = Field(FocalConfig(), description="for balancer focal")

    @model_validator(mode="after")
    def weights_have_an_effect(self) -> Self:
        """Refuses weights that would silently do nothing."""
        if self.task_weights and self.balancer != "static":
            raise ValueError(f"task_weights have no effect with balancer {self.balancer}")
        if not self.reduction.startswith("task_"):
            if self.task_counts != "batch":
                raise ValueError(f"task_counts {self.task_counts} has no effect with reduction {self.reduction}")
            if self.task_weights:
                raise ValueError(f"task_weights have no effect with reduction {self.reduction}")
            if self.balancer != "static":
                raise ValueError(f"balancer {self.balancer} has no effect with reduction {self.reduction}")
        return self
