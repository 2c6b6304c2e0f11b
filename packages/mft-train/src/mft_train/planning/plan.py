"""What a run will be before it starts: parameters, memory by part, rows, steps and tokens."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

import orjson

from mft_train.model.compute import run_device, settle_compute
from mft_train.model.load import empty_model
from mft_train.optimization.schedule import num_run_steps
from mft_train.planning.memory import (
    Memory,
    count_trained,
    estimate_memory,
    free_bytes,
    mean_row,
    readable,
    settle_checkpointing,
)
from mft_train.rows.mixture import epoch_rows

if TYPE_CHECKING:
    from mft_train.config.config import RunConfig
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


def make_plan(config: RunConfig, dataset: DatasetDir, num_processes: int) -> Plan:
    """The plan of a run on `num_processes` devices of the kind of this machine; raises TrainError."""
    device = run_device()
    free = free_bytes(device, num_processes)
    compute = settle_compute(config, device)
    compute = settle_checkpointing(config, compute, dataset, num_processes, free, is_talking=True)
    model = empty_model(config)
    rows = sum(task.train_rows if config.mixture else epoch_rows(task, config) for task in dataset.trained_tasks)
    steps_per_epoch = math.ceil(rows / config.global_batch_size)
    tokens, supervised = mean_row(dataset.trained_tasks, config)
    return Plan(
        parameters=sum(parameter.numel() for parameter in model.parameters()),
        trainable_parameters=count_trained(model),
        processes=num_processes,
        gradient_accumulation_steps=config.global_batch_size // (config.micro_batch_size * num_processes),
        rows=rows,
        steps_per_epoch=steps_per_epoch,
        steps=num_run_steps(steps_per_epoch, config),
        tokens_per_step=round(tokens * config.global_batch_size),
        supervised_tokens_per_step=round(supervised * config.global_batch_size),
        gradient_checkpointing=compute.gradient_checkpointing,
        memory=estimate_memory(config, compute, dataset, model, num_processes),
    )


def to_json(plan: Plan) -> str:
    """The plan as one JSON object, memory in bytes."""
    document = asdict(plan)
    memory = {f"{name}_bytes": value for name, value in document.pop("memory").items()}
    memory["total_bytes"] = plan.memory.total
    return orjson.dumps({**document, "memory": memory}, option=orjson.OPT_INDENT_2).decode()


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
    for name, value in asdict(plan.memory).items():
        label = f"memory, {name.replace('_', ' ')}"
        lines.append((label, readable(value) + (" (estimate)" if name in estimates else "")))
    lines.append(("memory, total", f"{readable(plan.memory.total)} per process (estimate)"))
    width = max(len(label) for label, _ in lines)
    return "\n".join(f"{label:{width}}  {value}" for label, value in lines)
