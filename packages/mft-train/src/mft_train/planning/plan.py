"""What a run will be before it starts: parameters, memory by part, rows, steps and tokens."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any

import click
import orjson

from mft_train.checkpoint.best_models import candidates
from mft_train.config.config import DistributedConfig
from mft_train.engine.start import check_engine
from mft_train.errors import TrainError
from mft_train.model.compute import run_device, settle_compute
from mft_train.model.load import empty_model
from mft_train.optimization.schedule import num_run_steps
from mft_train.planning.loading import Loading, estimate_loading
from mft_train.planning.memory import (
    TRAINED_BYTES,
    USABLE_SHARE,
    Memory,
    count_trained,
    estimate_memory,
    free_bytes,
    mean_row,
    readable,
    settle_checkpointing,
)
from mft_train.planning.task_shares import TaskShare, task_shares, to_lines, warning
from mft_train.rows.mixture import epoch_rows

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from mft_train.config.config import RunConfig
    from mft_train.model.compute import Compute
    from mft_train.rows.dataset_dir import DatasetDir


@dataclass(frozen=True, slots=True)
class Plan:
    """The run in numbers. Tokens are means per optimizer step, over all processes."""

    parameters: int
    trainable_parameters: int
    processes: int
    gradient_accumulation_steps: int
    rows: int
    steps_per_epoch: int
    steps: int
    tokens_per_step: int
    supervised_tokens_per_step: int
    gradient_checkpointing: bool
    memory: Memory
    loading: Loading
    tasks: list[TaskShare]
    best_models_bytes: int  # on disk, at most, for the best models of tasks
    smallest: dict[str, int | None] | None = None


# The ways of spreading a run that are compared for GPUs of a given memory.
ENGINES: dict[str, dict[str, Any]] = {
    "ddp": {"engine": "ddp"},
    "fsdp": {"engine": "fsdp"},
    "fsdp, offload": {"engine": "fsdp", "offload_parameters": True},
    **{f"deepspeed stage {stage}": {"engine": "deepspeed", "stage": stage} for stage in (1, 2, 3)},
    "deepspeed stage 3, offload": {
        "engine": "deepspeed",
        "stage": 3,
        "offload_optimizer": True,
        "offload_parameters": True,
    },
}


def smallest_numbers(
    config: RunConfig, compute: Compute, dataset: DatasetDir, model: PreTrainedModel, gpu_bytes: int
) -> dict[str, int | None]:
    """By engine, the smallest number of GPUs of `gpu_bytes` that the run fits on; None if it fits on no number, or
    does not run there.

    A number has to divide the micro batches of a step.
    """
    passes = config.global_batch_size // config.micro_batch_size
    numbers = [number for number in range(1, passes + 1) if passes % number == 0]
    found: dict[str, int | None] = {}
    for name, settings in ENGINES.items():
        other = config.model_copy(update={"distributed": DistributedConfig(**settings)})
        fitting = (
            number
            for number in numbers
            if runs(other, number)
            and estimate_memory(other, compute, dataset, model, number).total <= USABLE_SHARE * gpu_bytes
        )
        found[name] = next(fitting, None)
    return found


def runs(config: RunConfig, num_processes: int) -> bool:
    """Whether the engine runs these settings in so many processes."""
    try:
        check_engine(config, num_processes)
    except TrainError:
        return False
    return True


def make_plan(config: RunConfig, dataset: DatasetDir, num_processes: int, gpu_bytes: int | None = None) -> Plan:
    """The plan of a run on `num_processes` devices of the kind of this machine; raises TrainError.

    With `gpu_bytes` they are GPUs with so much memory, all of it free.
    """
    device = run_device()
    free = gpu_bytes or free_bytes(device, num_processes)
    compute = settle_compute(config, device)
    if gpu_bytes and config.dtype == "auto":
        compute = replace(compute, dtype="bfloat16")
    compute = settle_checkpointing(config, compute, dataset, num_processes, free, is_talking=True)
    model = empty_model(config)
    rows = round(sum(epoch_rows(dataset.trained_tasks, config)))
    steps_per_epoch = math.ceil(rows / config.global_batch_size)
    steps = num_run_steps(steps_per_epoch, config)
    shares = task_shares(dataset, config, steps)
    if line := warning(shares):
        click.echo(line, err=True)
    tokens, supervised = mean_row(dataset.trained_tasks, config)
    trained = count_trained(model)
    return Plan(
        parameters=sum(parameter.numel() for parameter in model.parameters()),
        trainable_parameters=trained,
        processes=num_processes,
        gradient_accumulation_steps=config.global_batch_size // (config.micro_batch_size * num_processes),
        rows=rows,
        steps_per_epoch=steps_per_epoch,
        steps=steps,
        tokens_per_step=round(tokens * config.global_batch_size),
        supervised_tokens_per_step=round(supervised * config.global_batch_size),
        gradient_checkpointing=compute.gradient_checkpointing,
        memory=estimate_memory(config, compute, dataset, model, num_processes),
        loading=estimate_loading(config, compute, model, num_processes),
        tasks=shares,
        best_models_bytes=len(candidates(config, dataset)) * trained * TRAINED_BYTES,
        smallest=smallest_numbers(config, compute, dataset, model, gpu_bytes) if gpu_bytes else None,
    )


def to_json(plan: Plan) -> str:
    """The plan as one JSON object, memory in bytes."""
    document = asdict(plan)
    memory = {f"{name}_bytes": value for name, value in document.pop("memory").items()}
    memory["total_bytes"] = plan.memory.total
    loading = {f"{name}_bytes": value for name, value in document.pop("loading").items()}
    loading["machine_bytes"] = plan.loading.machine(plan.processes)
    if plan.smallest is None:
        del document["smallest"]
    return orjson.dumps({**document, "memory": memory, "loading": loading}, option=orjson.OPT_INDENT_2).decode()


def to_text(plan: Plan) -> str:
    """The plan as a table."""
    share = plan.trainable_parameters / plan.parameters
    lines = [
        ("parameters", f"{plan.parameters:,}"),
        ("trainable parameters", f"{plan.trainable_parameters:,} ({share:.2%})"),
        ("training rows", f"{plan.rows:,}"),
        ("steps per epoch", f"{plan.steps_per_epoch:,}"),
        ("steps", f"{plan.steps:,} ({plan.steps / plan.steps_per_epoch:.2f} epochs)"),
        ("processes", f"{plan.processes}"),
        ("accumulation steps", f"{plan.gradient_accumulation_steps}"),
        ("gradient checkpointing", "on" if plan.gradient_checkpointing else "off"),
        ("tokens per step", f"{plan.tokens_per_step:,}, supervised {plan.supervised_tokens_per_step:,}"),
    ]
    estimates = {"logits", "activations"}
    parts = asdict(plan.memory)
    host = parts.pop("host")
    for name, value in parts.items():
        label = f"memory, {name.replace('_', ' ')}"
        lines.append((label, readable(value) + (" (estimate)" if name in estimates else "")))
    lines.append(("memory, total", f"{readable(plan.memory.total)} per process (estimate)"))
    if host:
        lines.append(("host memory", f"{readable(host)} per process"))
    lines.append(("host memory, loading", loading_text(plan)))
    if plan.best_models_bytes:
        lines.append(("disk, best models of tasks", f"{readable(plan.best_models_bytes)} at most"))
    for name, number in (plan.smallest or {}).items():
        lines.append(
            (f"GPUs, {name}", "does not fit on any number" if number is None else f"{number} or more (estimate)")
        )
    width = max(len(label) for label, _ in lines)
    table = [f"{label:{width}}  {value}" for label, value in lines]
    return "\n".join([*table, "", *to_lines(plan.tasks)])


def loading_text(plan: Plan) -> str:
    """The host memory of loading, in words."""
    loading, several = plan.loading, plan.processes > 1
    parts = [f"{readable(loading.rank_0)} in rank 0" if several else readable(loading.rank_0)]
    if several:
        parts.append(f"{readable(loading.other_ranks)} in each other rank")
    parts.append(f"{readable(loading.files)} of files")
    total = f"; {readable(loading.machine(plan.processes))} on a machine with all" if several else ""
    return f"{', '.join(parts)}{total} (at most)"
