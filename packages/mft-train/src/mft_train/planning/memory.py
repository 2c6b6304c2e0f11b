"""The memory that a run will need on each device, the memory that is free, and whether activations are recomputed."""

from __future__ import annotations

import math
import re
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from mft_train.engine.deepspeed import buffer_sizes
from mft_train.loss.linear_cross_entropy import chunks
from mft_train.model.decoder_layers import decoder_layers
from mft_train.model.load import empty_model
from mft_train.model.quantization import quantized_bytes
from mft_train.optimization.optimizer import state_bytes
from mft_train.planning.rehearsal import rehearse
from mft_train.rows.mixture import row_shares

if TYPE_CHECKING:
    from collections.abc import Sequence

    import torch
    from torch import nn
    from transformers import PreTrainedModel

    from mft_train.config.config import DistributedConfig, RunConfig
    from mft_train.model.compute import Compute
    from mft_train.planning.rehearsal import Pass
    from mft_train.rows.dataset_dir import DatasetDir, Task

TRAINED_BYTES = 4  # weights that are trained and their gradients are float32
DTYPE_BYTES = {"float32": 4, "bfloat16": 2}
# Share of the free memory that a run may be planned to fill: allocators lose some to fragments.
USABLE_SHARE = 0.9


@dataclass(frozen=True, slots=True)
class Memory:
    """Bytes on each device, by what holds them; `logits` and `activations` are estimates for a full micro batch.

    `host` is what each process keeps in host memory instead, which is not part of the total.
    """

    weights: int
    gradients: int
    gradient_buckets: int
    optimizer: int
    logits: int
    activations: int
    host: int = 0

    @property
    def total(self) -> int:
        """All of it together, on the device."""
        return sum(asdict(self).values()) - self.host


def count_trained(model: nn.Module) -> int:
    """Numbers that the optimizer changes; a tied weight counts once."""
    return sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)


def mean_row(tasks: Sequence[Task], config: RunConfig) -> tuple[float, float]:
    """Mean tokens and supervised tokens of a training row as the run draws them."""
    pairs = list(zip(row_shares(tasks, config), tasks, strict=True))
    tokens = sum(share * task.train_tokens / task.train_rows for share, task in pairs)
    supervised = sum(share * task.train_supervised_tokens / task.train_rows for share, task in pairs)
    return tokens, supervised


def estimate_memory(
    config: RunConfig, compute: Compute, dataset: DatasetDir, model: PreTrainedModel, num_processes: int
) -> Memory:
    """The memory of one device. A micro batch has full rows, supervised as they are on average.

    Moments that are paged count as if they stayed on the device.
    """
    distributed = config.distributed
    trained = count_trained(model)
    gradients = trained * TRAINED_BYTES
    shared = shared_by(distributed, num_processes)
    shares = {
        "weights": model_bytes(model, config, compute) // shared["weights"],
        "gradients": gradients // shared["gradients"],
        # DeepSpeed updates a copy of its share of the weights.
        "optimizer": (state_bytes(model, config) + gradients * (distributed.engine == "deepspeed"))
        // shared["optimizer"],
    }
    hosted = hosted_parts(distributed)
    device = {name: 0 if name in hosted else size for name, size in shares.items()}
    compute_bytes = DTYPE_BYTES[compute.dtype]
    if holds_shares(distributed):
        device["weights"] += whole_at_a_time(model, config, compute)
    tokens, supervised = micro_batch(config, dataset)
    logits = logits_bytes(model, supervised, compute_bytes)
    buckets = bucket_bytes(model, config, num_processes)
    passes = rehearse(
        model,
        compute,
        config.method,
        tokens,
        supervised,
        is_fused=not (distributed.engine == "deepspeed" and distributed.stage == 3),
    )
    if passes is None:
        per_token = activations_per_token(model, is_recomputed=compute.gradient_checkpointing)
        activations = (tokens * per_token + count_cast(model, config, compute)) * compute_bytes
    else:
        rest = beside_shares(passes, config, buckets, device["gradients"], num_processes)
        activations = max(0, rest - logits - device["gradients"] - buckets)
    return Memory(
        weights=device["weights"],
        gradients=device["gradients"],
        gradient_buckets=buckets,
        optimizer=device["optimizer"],
        logits=logits,
        activations=activations,
        host=sum(shares[name] for name in hosted),
    )


def micro_batch(config: RunConfig, dataset: DatasetDir) -> tuple[int, int]:
    """Tokens of a micro batch of full rows, and how many of them are supervised on average."""
    tokens = config.micro_batch_size * dataset.seq_length
    mean_tokens, mean_supervised = mean_row(dataset.trained_tasks, config)
    return tokens, math.ceil(tokens * mean_supervised / mean_tokens)


def model_bytes(model: PreTrainedModel, config: RunConfig, compute: Compute, part: nn.Module | None = None) -> int:
    """Bytes of all weights or of a part's: trained ones in float32, frozen ones in the compute type or quantised."""
    part = part or model
    trained = count_trained(part)
    frozen = sum(parameter.numel() for parameter in part.parameters()) - trained
    frozen_bytes = frozen * DTYPE_BYTES[compute.dtype]
    if config.method == "qlora":
        shapes = quantized_shapes(model, part)
        frozen_bytes = (frozen - sum(map(math.prod, shapes))) * DTYPE_BYTES[compute.dtype]
        frozen_bytes += quantized_bytes(shapes, config.quantization)
    return frozen_bytes + trained * TRAINED_BYTES


def count_cast(model: PreTrainedModel, config: RunConfig, compute: Compute) -> int:
    """Numbers of trained weights that are there in the compute type too, as autocast makes them.

    All of them wait for the backward pass, or those of one layer and of what is none where that computes or casts
    anew, as under stage 3. FSDP gathers weights in the compute type.
    """
    distributed = config.distributed
    if compute.dtype == "float32" or (distributed.engine == "fsdp" and distributed.mixed_precision):
        return 0
    trained = count_trained(model)
    is_cast_anew = compute.gradient_checkpointing or (distributed.engine == "deepspeed" and distributed.stage == 3)
    if not is_cast_anew:
        return trained
    sizes = [count_trained(layer) for layer in decoder_layers(model)]
    return trained - sum(sizes) + max(sizes, default=0)


def beside_shares(passes: Pass, config: RunConfig, buckets: int, gradients: int, num_processes: int) -> int:
    """Most bytes of a pass with its gradients and buckets; a step's only pass begins without gradients.

    DDP's buckets are always there. The other engines keep a share of the gradients, or have them in their buckets,
    which DeepSpeed makes for a backward pass (stage 3: once, and joins and cuts into shares what is in them, at the
    latest when the activations are gone).
    """
    distributed = config.distributed
    is_first = config.global_batch_size == config.micro_batch_size * num_processes
    if distributed.engine not in ("fsdp", "deepspeed"):
        return buckets + (passes.first if is_first else passes.next)
    kept = 0 if is_first else gradients
    if distributed.engine == "deepspeed" and distributed.stage == 3:
        return gradients + buckets + max(passes.forward, passes.backward, buckets + buckets // num_processes)
    return kept + max(passes.forward, passes.backward + buckets)


def holds_shares(distributed: DistributedConfig) -> bool:
    """Whether each process holds a share of the weights alone."""
    return distributed.engine == "fsdp" or (distributed.engine == "deepspeed" and distributed.stage == 3)


def hosted_parts(distributed: DistributedConfig) -> list[str]:
    """What the processes keep in host memory."""
    if distributed.engine == "fsdp" and distributed.offload_parameters:
        return ["optimizer", "gradients", "weights"]
    return [*["optimizer", "gradients"] * distributed.offload_optimizer, *["weights"] * distributed.offload_parameters]


def shared_by(distributed: DistributedConfig, num_processes: int) -> dict[str, int]:
    """How many processes share the weights, the gradients, and the optimizer's state."""
    stage = {"fsdp": 3, "deepspeed": distributed.stage}.get(distributed.engine, 0)
    parts = {"optimizer": 1, "gradients": 2, "weights": 3}
    return {name: num_processes if stage >= least else 1 for name, least in parts.items()}


def bucket_bytes(model: PreTrainedModel, config: RunConfig, num_processes: int) -> int:
    """Bytes in which gradients are on their way between processes.

    DDP has a second copy of them all, DeepSpeed a buffer, FSDP those of two layers.
    """
    trained, distributed = count_trained(model), config.distributed
    if num_processes == 1:
        return 0
    if distributed.engine == "deepspeed":
        return buffer_sizes(config, model)["reduce_bucket_size"] * TRAINED_BYTES
    if distributed.engine == "fsdp":
        largest = max((count_trained(layer) for layer in decoder_layers(model)), default=0)
        return 2 * largest * TRAINED_BYTES
    return trained * TRAINED_BYTES


def quantized_shapes(model: PreTrainedModel, part: nn.Module) -> list[tuple[int, ...]]:
    """The shapes of a part's weights that method qlora quantises: of linear layers but the output projection."""
    from torch import nn

    output: Any = model.get_output_embeddings()
    frozen = [module.weight for module in part.modules() if isinstance(module, nn.Linear) and module is not output]
    return [tuple(weight.shape) for weight in frozen if not weight.requires_grad]


def whole_at_a_time(model: PreTrainedModel, config: RunConfig, compute: Compute) -> int:
    """Bytes of weights that shared ones are gathered into: those of the root, and the largest layer, twice.

    The next layer is gathered while one computes.
    """
    sizes = [model_bytes(model, config, compute, layer) for layer in decoder_layers(model)]
    return model_bytes(model, config, compute) - sum(sizes) + 2 * max(sizes, default=0)


def logits_bytes(model: PreTrainedModel, supervised: int, compute_bytes: int) -> int:
    """Memory of a loss over `supervised` positions: one chunk of logits at a time, and the gradients that are kept.

    For a model whose logits are its output projection's and nothing more; others keep all their logits.
    """
    weight = model.get_output_embeddings().weight
    vocabulary, width = weight.shape
    chunk = min(supervised, next(chunks(supervised, vocabulary)).stop)
    # Logits in float32, which become their own gradient, and that in the compute type.
    chunk_bytes = chunk * vocabulary * (4 + (compute_bytes if compute_bytes < 4 else 0))
    return chunk_bytes + supervised * width * compute_bytes + (weight.numel() * TRAINED_BYTES * weight.requires_grad)


def activations_per_token(model: PreTrainedModel, *, is_recomputed: bool) -> int:
    """Numbers kept for the backward pass for each token: an estimate from the shape of a gated decoder layer.

    A layer keeps about 8 vectors of the hidden size, 2 of keys and values and 4 of the feed-forward size, and 3 of the
    hidden size for every expert that a token goes to; recomputing keeps each layer's input and one whole layer.
    """
    shape = model.config.get_text_config()
    hidden, layers = shape.hidden_size, shape.num_hidden_layers
    heads = getattr(shape, "num_attention_heads", None) or 1
    head = getattr(shape, "head_dim", None) or hidden // heads
    keys = head * (getattr(shape, "num_key_value_heads", None) or heads)
    wide = getattr(shape, "intermediate_size", None) or 4 * hidden
    routed = 0
    if experts := getattr(shape, "num_experts_per_tok", None):
        routed = 3 * experts * hidden
        wide = experts * (getattr(shape, "moe_intermediate_size", None) or wide)
        wide += getattr(shape, "shared_expert_intermediate_size", None) or 0
    layer = 8 * hidden + 2 * keys + 4 * wide + routed
    return layers * hidden + layer if is_recomputed else layers * layer


def settle_checkpointing(
    config: RunConfig, compute: Compute, dataset: DatasetDir, num_processes: int, free: int, *, is_talking: bool
) -> Compute:
    """How the run computes, with gradient checkpointing decided.

    `auto` turns it on if the run would not fit without it into `free` bytes on each device, and stderr says so.
    """
    if config.gradient_checkpointing != "auto":
        return compute
    memory = estimate_memory(config, compute, dataset, empty_model(config), num_processes)
    needs_it = memory.total > USABLE_SHARE * free
    if is_talking:
        answer = f"gradient checkpointing is {'on' if needs_it else 'off'}"
        click.echo(f"{answer}: {readable(memory.total)} estimated without it, {readable(free)} free", err=True)
    return replace(compute, gradient_checkpointing=needs_it)


def free_bytes(device: torch.device, local_processes: int) -> int:
    """Bytes free for one of `local_processes` ranks on this machine: of its own GPU, or its share of the RAM."""
    if device.type == "cuda":
        import torch

        return torch.cuda.mem_get_info(device)[0]
    (available,) = re.findall(r"^MemAvailable: +(\d+) kB$", Path("/proc/meminfo").read_text(), re.MULTILINE)
    return int(available) * 1024 // local_processes


def parse_bytes(text: str) -> int:
    """The bytes of a size such as 80GB or 40GiB; raises ValueError."""
    found = re.fullmatch(r"(\d+(?:\.\d+)?) ?(GB|GiB)", text)
    if not found:
        raise ValueError(f"{text} is not like 80GB or 40GiB")
    return int(float(found[1]) * (10**9 if found[2] == "GB" else 2**30))


def readable(size: int) -> str:
    """A number of bytes in MiB, from 1,024 of them on in GiB."""
    return f"{size / 2**30:,.2f} GiB" if size >= 2**30 else f"{size / 2**20:,.2f} MiB"
