"""The typed configuration of a run: its keys, defaults and checks."""

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from mft_train.config.adapter_config import BASE_CHANGING_INITS, LoraConfig, QuantizationConfig
from mft_train.config.loss_config import LossConfig
from mft_train.config.section import NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt, Section

SIZE = r"^\d+(\.\d+)?(kb|mb|gb|tb)$"


class DistributedConfig(Section):
    """How a run of several processes spreads its weights."""

    engine: Literal["auto", "ddp", "fsdp", "deepspeed"] = Field(
        "auto",
        description="ddp: every process holds all weights; fsdp: each holds a share of them; deepspeed: of what "
        "`stage` says; auto is ddp",
    )
    reshard_after_forward: bool = Field(
        True, description="fsdp: let go of a layer's weights between forward and backward; false is faster, takes more"
    )
    mixed_precision: bool = Field(
        True, description="fsdp: gather weights in the compute type; false gathers float32, and computes as ddp does"
    )
    stage: Literal[1, 2, 3] = Field(
        2, description="deepspeed: processes share the moments (1), the gradients too (2), the weights too (3)"
    )
    offload_optimizer: bool = Field(False, description="deepspeed: moments and updates in host memory")
    offload_parameters: bool = Field(
        False,
        description="in host memory: weights (deepspeed, stage 3); weights, gradients, moments, updates (fsdp)",
    )
    deepspeed_config: str | None = Field(
        None, description="deepspeed: JSON file with further settings of DeepSpeed's own, as for communication"
    )

    @model_validator(mode="after")
    def settings_have_an_effect(self) -> Self:
        """Refuses settings that would silently do nothing."""
        owners = dict.fromkeys(("reshard_after_forward", "mixed_precision"), "fsdp")
        owners |= dict.fromkeys(("stage", "offload_optimizer", "deepspeed_config"), "deepspeed")
        owners |= {"offload_parameters": "fsdp" if self.engine == "fsdp" else "deepspeed"}
        if self.engine == "fsdp" and self.offload_optimizer:
            raise ValueError(
                "fsdp offloads everything or nothing: set offload_parameters in place of offload_optimizer"
            )
        for name, owner in owners.items():
            if self.engine != owner and getattr(self, name) != type(self).model_fields[name].default:
                raise ValueError(f"{name} has no effect with engine {self.engine}")
        if self.engine == "deepspeed" and self.offload_parameters and self.stage != 3:
            raise ValueError(f"offload_parameters has no effect with stage {self.stage}")
        return self


class CacheConfig(Section):
    """What this machine keeps of a dataset in a store."""

    directory: str | None = Field(None, description="null: mft-train in XDG_CACHE_HOME, or else in ~/.cache")
    limit: Annotated[str, Field(pattern=SIZE)] | PositiveInt | None = Field(
        None, description="most that one dataset may take, in bytes or such as 20gb; null: all of it"
    )
    timeout_seconds: PositiveFloat = Field(60.0, description="how long the store may send nothing")


class RunConfig(Section):
    """Everything that defines a run."""

    model: str = Field(description="base model: Hugging Face directory or hub id", examples=["base/"])
    dataset: str = Field(
        description="dataset written by mft-data build: a directory, or s3://, gs://, azure://, hf://, oci://",
        examples=["dataset/"],
    )
    cache: CacheConfig = Field(CacheConfig(), description="of a dataset in a store")
    output: str = Field(description="run directory to create", examples=["run/"])
    method: Literal["lora", "qlora", "full"] = Field(
        "lora", description="train an adapter, an adapter over a base in 4 or 8 bits, or all weights"
    )
    trust_remote_code: bool = Field(
        False, description="run the Python code that comes with the base model, with all rights that you have"
    )
    max_steps: PositiveInt | None = Field(None, description="optimizer steps; give this or epochs", examples=[200])
    epochs: PositiveInt | None = Field(None, description="passes over the training rows; give this or max_steps")
    global_batch_size: PositiveInt = Field(16, description="packed rows per optimizer step, over all processes")
    micro_batch_size: PositiveInt = Field(1, description="packed rows per forward pass of one process")
    learning_rate: PositiveFloat = Field(1e-4, description="peak learning rate")
    min_learning_rate: NonNegativeFloat = Field(0.0, description="learning rate at the end of the schedule")
    schedule: Literal["cosine", "linear", "constant"] = Field("cosine", description="decay after warm-up")
    warmup_steps: NonNegativeInt = Field(0, description="optimizer steps of linear warm-up")
    warmup_ratio: Annotated[float, Field(ge=0, lt=1)] = Field(
        0.0, description="linear warm-up as a share of all steps; give this or warmup_steps"
    )
    optimizer: Literal["adamw", "adamw_8bit", "paged_adamw_32bit", "paged_adamw_8bit"] = Field(
        "adamw", description="AdamW; 8bit: moments in 8 bits; paged: moments move to host memory when the GPU is full"
    )
    weight_decay: NonNegativeFloat = Field(0.0, description="decoupled weight decay of AdamW, on matrices only")
    beta1: Annotated[float, Field(ge=0, lt=1)] = Field(0.9, description="AdamW's decay of the first moment")
    beta2: Annotated[float, Field(ge=0, lt=1)] = Field(0.95, description="AdamW's decay of the second moment")
    max_grad_norm: PositiveFloat = Field(1.0, description="gradients are scaled down to this global norm")
    loss: LossConfig = Field(LossConfig(), description="the multi-task objective")
    lora: LoraConfig = Field(LoraConfig(), description="the adapter, for methods lora and qlora")
    quantization: QuantizationConfig = Field(QuantizationConfig(), description="the base, for method qlora")
    mixture: dict[str, NonNegativeFloat] = Field(
        {}, description="task to its share of the rows drawn, for every task; empty: by size, each row once per epoch"
    )
    mixture_exponent: NonNegativeFloat | None = Field(
        None,
        examples=[0.5],
        description="in place of mixture: shares by size^exponent; null or 1: by size, 0.5: square root, 0: equal",
    )
    mixture_unit: Literal["rows", "tokens"] = Field(
        "rows", description="what mixture and mixture_exponent give shares of, and measure sizes in"
    )
    max_repetitions: PositiveFloat | dict[str, PositiveFloat] | None = Field(
        None,
        description="most times that the run sees the rows of a task, for all or task to number; what is over goes to "
        "the others",
    )
    repeats: dict[str, NonNegativeFloat] = Field(
        {},
        description="task to how often an epoch has each of its rows, such as 2 or 0.5; 0 leaves the task out; "
        "a task that is not named: 1; in place of the mixture keys",
    )
    guards: list[str] = Field(
        [],
        description="tasks that are validated and never trained: the run's end and the report tell a loss that rose by "
        "more than 2 %",
    )
    dtype: Literal["auto", "float32", "bfloat16"] = Field(
        "auto", description="compute type; auto is float32 on CPU, bfloat16 on GPU"
    )
    attention: Literal["auto", "segments", "eager", "sdpa", "flash_attention_2"] = Field(
        "auto", description="kernel over packed rows; auto is flash_attention_2 on GPU if installed, else segments"
    )
    gradient_checkpointing: Literal[True, False, "auto"] = Field(
        False, description="recompute activations in backward to save memory; auto if the run would not fit without"
    )
    compile: bool = Field(False, description="torch.compile the decoder layers: minutes at the start, faster steps")
    log_interval: PositiveInt = Field(1, description="steps between train events")
    trackers: list[Literal["tensorboard", "wandb", "mlflow"]] = Field(
        ["tensorboard"],
        description="who gets the numbers besides metrics.jsonl: tensorboard, wandb, mlflow; []: no one",
    )
    tracker_project: Annotated[str, Field(min_length=1)] = Field(
        "mft-train", description="project of Weights & Biases, experiment of MLflow"
    )
    tracker_run_name: str | None = Field(None, description="name of the run there; null: that of the output directory")
    validation_interval: NonNegativeInt = Field(50, description="steps between validations; 0: only first and last")
    validation_rows: PositiveInt | None = Field(
        None, description="rows of each task that a validation reads, the same each time; null: all of them"
    )
    early_stopping_patience: NonNegativeInt = Field(
        0, description="validations in a row without a better loss after which the run ends; 0: never"
    )
    early_stopping_rule: Literal["mean", "worst", "tasks", "evaluation"] | None = Field(
        None,
        description="what has to get better: as best_rule, or tasks: the loss of any task, each counted by itself; "
        "null: that of best_rule",
    )
    best_rule: Literal["mean", "worst", "evaluation"] = Field(
        "mean",
        description="how the best checkpoint is chosen: lowest mean loss of the trained tasks, lowest of their worst "
        "loss relative to its first one, or best evaluation_metric",
    )
    best_of_tasks: list[str] | Literal["auto"] | bool = Field(
        "auto",
        description="keep the model of the best checkpoint of every task, or of those named, in best/TASK; auto: yes "
        "with an adapter, and full models if all fit into half of the free disk",
    )
    checkpoint_interval: NonNegativeInt = Field(
        50, description="steps between checkpoints; 0: none but at the end, and where SIGTERM or SIGINT stops the run"
    )
    keep_last: NonNegativeInt = Field(
        3, description="latest checkpoints to keep, beside the best validated one; 0: all of them"
    )
    evaluation_command: str | None = Field(
        None,
        description="shell line that rank 0 runs beside the training for a checkpoint, whose path is in "
        "MFT_CHECKPOINT; it prints JSON",
    )
    evaluation_interval: NonNegativeInt = Field(
        0, description="steps between evaluations, a multiple of checkpoint_interval; 0: of every checkpoint"
    )
    evaluation_timeout_seconds: PositiveFloat = Field(3600.0, description="after which an evaluation is ended")
    evaluation_metric: str | None = Field(
        None, description="dotted name of the number in that JSON which best_rule evaluation looks at"
    )
    evaluation_goal: Literal["higher", "lower"] = Field("higher", description="which values of it are better")
    background_checkpoints: Literal[True, False, "auto"] = Field(
        "auto",
        description="write checkpoints while training goes on, from a copy in host memory; auto: if that is on a GPU",
    )
    distributed: DistributedConfig = Field(DistributedConfig(), description="how several processes share the work")
    timeout_seconds: PositiveFloat = Field(
        3600.0, description="how long processes wait for each other, as for the one that writes a checkpoint"
    )
    seed: NonNegativeInt = Field(0, description="of adapter initialisation, row order and dropout")

    @model_validator(mode="after")
    def settings_fit_together(self) -> Self:
        """Refuses combinations that have no meaning."""
        if (self.max_steps is None) == (self.epochs is None):
            raise ValueError("give exactly one of max_steps and epochs")
        if self.min_learning_rate > self.learning_rate:
            raise ValueError("min_learning_rate is above learning_rate")
        for name in ("mixture", "mixture_exponent", "max_repetitions"):
            if self.repeats and getattr(self, name) not in (None, {}):
                raise ValueError(f"give {name} or repeats, not both")
        if self.mixture and self.mixture_exponent is not None:
            raise ValueError("give mixture or mixture_exponent, not both")
        if self.mixture_unit != "rows" and not self.mixture and self.mixture_exponent is None:
            raise ValueError(f"mixture_unit {self.mixture_unit} has no effect without mixture or mixture_exponent")
        if self.warmup_steps and self.warmup_ratio:
            raise ValueError("give warmup_steps or warmup_ratio, not both")
        if self.method == "qlora" and self.lora.init in BASE_CHANGING_INITS:
            raise ValueError(f"lora.init {self.lora.init} changes the base, which method qlora has quantised")
        if self.method == "qlora" and self.lora.target_parameters:
            raise ValueError("lora.target_parameters do not go with method qlora, which quantises linear layers")
        if self.method == "qlora" and self.quantization.type == "int8" and self.lora.dora:
            raise ValueError("lora.dora does not go with quantization.type int8: take nf4 or fp4")
        if self.max_steps is not None and self.warmup_steps >= self.max_steps:
            raise ValueError("warmup_steps is not below max_steps")
        self.check_stopping()
        self.check_evaluation()
        return self

    def check_stopping(self) -> None:
        """Refuses rules of the best and of stopping that could not be followed."""
        stopping = self.early_stopping_rule or self.best_rule
        if self.early_stopping_patience and not self.validation_interval and stopping != "evaluation":
            raise ValueError("early_stopping_patience needs a validation_interval")
        if self.early_stopping_rule and not self.early_stopping_patience:
            raise ValueError("early_stopping_rule has no effect without early_stopping_patience")
        if "evaluation" in (self.best_rule, stopping) and not (self.evaluation_command and self.evaluation_metric):
            raise ValueError("rule evaluation needs an evaluation_command and an evaluation_metric")

    def check_evaluation(self) -> None:
        """Refuses settings of an evaluation that would do nothing, or look at a checkpoint that is not there."""
        names = ("evaluation_interval", "evaluation_timeout_seconds", "evaluation_metric", "evaluation_goal")
        for name in names:
            if not self.evaluation_command and getattr(self, name) != type(self).model_fields[name].default:
                raise ValueError(f"{name} has no effect without an evaluation_command")
        if self.evaluation_interval and not self.checkpoint_interval:
            raise ValueError("evaluation_interval needs a checkpoint_interval")
        if self.evaluation_interval and self.evaluation_interval % self.checkpoint_interval:
            raise ValueError(
                f"evaluation_interval {self.evaluation_interval} is not a multiple of checkpoint_interval "
                f"{self.checkpoint_interval}"
            )
