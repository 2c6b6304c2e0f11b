"""What a run will be before it starts: parameters, memory by part, rows, steps and tokens."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

import orjson

from mft_train.model import empty_model, resolve_dtype

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import nn

    from mft_train.config import RunConfig
    from mft_train.dataset_dir import DatasetDir, Task

TRAINED_BYTES = 4  # weights that are trained, their gradients and moments are float32
DTYPE_BYTES = {"float32": 4, "bfloat16": 2}


@dataclass(frozen=True, slots=True)
class Memory:
    """Bytes on each device, by what holds them; `logits` and `activations` are estimates for a full micro batch."""

    weights: int
    gradients: int
    gradient_buckets: int
    optimizer: int
    logits: int
    activations: int

    @property
    def total(self) -> int:
        """All of it together."""
        return sum(asdict(self).values())


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
    memory: Memory


def make_plan(config: RunConfig, dataset: DatasetDir, num_processes: int) -> Plan:
    """The plan of a run on `num_processes` devices of the kind of this machine; raises TrainError."""
    import torch

    model = empty_model(config)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    rows = sum(task.train_rows for task in dataset.trained_tasks)
    steps_per_epoch = math.ceil(rows / config.global_batch_size)
    tokens, supervised = mean_row(dataset.trained_tasks, config.mixture)
    return Plan(
        parameters=sum(parameter.numel() for parameter in model.parameters()),
        trainable_parameters=count_trained(model),
        processes=num_processes,
        gradient_accumulation_steps=config.global_batch_size // (config.micro_batch_size * num_processes),
        rows=rows,
        steps_per_epoch=steps_per_epoch,
        steps=config.max_steps or (config.epochs or 0) * steps_per_epoch,
        tokens_per_step=round(tokens * config.global_batch_size),
        supervised_tokens_per_step=round(supervised * config.global_batch_size),
        memory=estimate_memory(config, dataset, model, resolve_dtype(config, device), num_processes),
    )


def count_trained(model: nn.Module) -> int:
    """Numbers that the optimizer changes; a tied weight counts once."""
    return sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)


def mean_row(tasks: Sequence[Task], mixture: dict[str, float]) -> tuple[float, float]:
    """Mean tokens and supervised tokens of a training row as the run draws them."""
    shares = [mixture.get(task.name, 0.0) if mixture else task.train_rows for task in tasks]
    pairs = [(share / sum(shares), task) for share, task in zip(shares, tasks, strict=True)]
    tokens = sum(share * task.train_tokens / task.train_rows for share, task in pairs)
    supervised = sum(share * task.train_supervised_tokens / task.train_rows for share, task in pairs)
    return tokens, supervised


def estimate_memory(config: RunConfig, dataset: DatasetDir, model: nn.Module, dtype: str, num_processes: int) -> Memory:
    """The memory of one device. A micro batch has full rows, supervised as they are on average."""
    trained = count_trained(model)
    frozen = sum(parameter.numel() for parameter in model.parameters()) - trained
    compute_bytes = DTYPE_BYTES[dtype]
    tokens = config.micro_batch_size * dataset.seq_length
    mean_tokens, mean_supervised = mean_row(dataset.trained_tasks, config.mixture)
    vocabulary = model.get_input_embeddings().weight.shape[0]
    supervised = math.ceil(tokens * mean_supervised / mean_tokens)
    return Memory(
        weights=frozen * compute_bytes + trained * TRAINED_BYTES,
        gradients=trained * TRAINED_BYTES,
        gradient_buckets=trained * TRAINED_BYTES if num_processes > 1 else 0,
        optimizer=2 * trained * TRAINED_BYTES,
        # The logits, their gradient, and the log-probabilities in float32.
        logits=supervised * vocabulary * (2 * compute_bytes + 4),
        activations=tokens * activations_per_token(model, is_recomputed=config.gradient_checkpointing) * compute_bytes,
    )


def activations_per_token(model: nn.Module, *, is_recomputed: bool) -> int:
    """Numbers kept for the backward pass for each token: an estimate from the shape of a gated decoder layer.

    A layer keeps about 8 vectors of the hidden size, 2 of keys and values and 4 of the feed-forward size; recomputing
    keeps each layer's input and one whole layer.
    """
    shape = model.config.get_text_config()
    hidden, layers = shape.hidden_size, shape.num_hidden_layers
    head = getattr(shape, "head_dim", None) or hidden // shape.num_attention_heads
    keys = head * (getattr(shape, "num_key_value_heads", None) or shape.num_attention_heads)
    wide = getattr(shape, "intermediate_size", None) or 4 * hidden
    layer = 8 * hidden + 2 * keys + 4 * wide
    return layers * hidden + layer if is_recomputed else layers * layer


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
        ("tokens per step", f"{plan.tokens_per_step:,}, supervised {plan.supervised_tokens_per_step:,}"),
    ]
    estimates = {"logits", "activations"}
    for name, value in asdict(plan.memory).items():
        label = f"memory, {name.replace('_', ' ')}"
        lines.append((label, readable(value) + (" (estimate)" if name in estimates else "")))
    lines.append(("memory, total", f"{readable(plan.memory.total)} per process (estimate)"))
    width = max(len(label) for label, _ in lines)
    return "\n".join(f"{label:{width}}  {value}" for label, value in lines)


def readable(size: int) -> str:
    """A number of bytes in MiB, from 1,024 of them on in GiB."""
    return f"{size / 2**30:,.2f} GiB" if size >= 2**30 else f"{size / 2**20:,.2f} MiB"
