"""The host memory that the processes of a run need until their model is ready to train."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from mft_train.config.adapter_config import BASE_CHANGING_INITS
from mft_train.model.base_weights import stored_weights
from mft_train.model.decoder_layers import decoder_layers
from mft_train.model.load import empty_model
from mft_train.model.stored_weights import find_stored
from mft_train.planning.memory import (
    DTYPE_BYTES,
    TRAINED_BYTES,
    bucket_bytes,
    count_trained,
    holds_shares,
    model_bytes,
    quantized_shapes,
)

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from mft_train.config.config import RunConfig
    from mft_train.model.compute import Compute


@dataclass(frozen=True, slots=True)
class Loading:
    """Bytes of host memory at the most, while a model is loaded; what the libraries take comes on top.

    Of a process those that it holds itself. `files` are pages of the weights' files, which the processes of a machine
    share and which the system takes back when memory is short.
    """

    rank_0: int
    other_ranks: int
    files: int

    def machine(self, processes: int) -> int:
        """Those of a machine that has all processes of the run."""
        return self.rank_0 + (processes - 1) * self.other_ranks + self.files


def estimate_loading(config: RunConfig, compute: Compute, model: PreTrainedModel, num_processes: int) -> Loading:
    """An upper bound for the processes of a run. On a CPU it counts what stays there for training."""
    stored, files = stored_weights(config.model)
    own = read_bytes(model, config, compute, stored, num_processes)
    is_in_host = compute.device.type == "cpu" or config.distributed.offload_parameters
    kept = kept_bytes(model, config, compute, num_processes) if is_in_host else 0
    others = own
    if holds_shares(config.distributed) and config.method != "qlora":
        adapters = count_trained(model) * TRAINED_BYTES * (config.method != "full")
        base = model if config.method == "full" else empty_model(config.model_copy(update={"method": "full"}))
        if find_stored(base, config, config.model):
            return Loading(adapters + kept, adapters + kept, files)
        # Rank 0 alone reads the model, the others get it piece by piece.
        piece = largest_piece(model, config, compute)
        rank_0 = own + kept
        if own >= model_bytes(model, config, compute):  # it holds the whole model, and lets go of each piece
            rank_0 = max(own, kept) + piece // num_processes
        return Loading(rank_0, adapters + kept + piece, files)
    if holds_shares(config.distributed) and config.distributed.engine == "deepspeed" and stored == compute.dtype:
        # All read it, but DeepSpeed sends what they have as pages of their files, which it then is no longer.
        piece = largest_piece(model, config, compute)
        others += piece + piece // num_processes
    return Loading(own + kept, others + kept, files)


def read_bytes(
    model: PreTrainedModel, config: RunConfig, compute: Compute, stored: str | None, num_processes: int
) -> int:
    """What a process that reads the model holds itself: what is not used as it lies in its file, and adapters."""
    trained = count_trained(model) * TRAINED_BYTES
    if config.method == "full":
        if holds_shares(config.distributed):  # it is cast piece by piece
            return 0 if stored == "float32" else largest_piece(model, config, compute) if stored else trained
        return trained if stored != "float32" or num_processes > 1 else 0
    frozen = model_bytes(model, config, compute) - trained
    is_mapped = stored == compute.dtype and config.lora.init not in BASE_CHANGING_INITS
    if config.method == "qlora":
        quantised = sum(map(math.prod, quantized_shapes(model, model)))
        exact = sum(weight.numel() for weight in model.parameters() if not weight.requires_grad) - quantised
        return trained + frozen - exact * DTYPE_BYTES[compute.dtype] * is_mapped
    return trained + (0 if is_mapped else frozen)


def kept_bytes(model: PreTrainedModel, config: RunConfig, compute: Compute, num_processes: int) -> int:
    """What a process has beside the model as it was read, once an engine has made it ready in host memory."""
    distributed = config.distributed
    trained = count_trained(model) * TRAINED_BYTES
    if num_processes == 1:
        return 0
    share = trained // num_processes
    if holds_shares(distributed):
        weights = model_bytes(model, config, compute) // num_processes
        # DeepSpeed updates a copy of its share, has made room for the gradients, and has moved its share once.
        return weights + 3 * share * (distributed.engine == "deepspeed")
    if distributed.engine == "deepspeed":
        return trained + share
    return bucket_bytes(model, config, num_processes)


def largest_piece(model: PreTrainedModel, config: RunConfig, compute: Compute) -> int:
    """Bytes of the largest part that is whole while it is shared: a layer or what is none, or a weight (DeepSpeed)."""
    if config.distributed.engine == "deepspeed":
        largest = max(weight.numel() for weight in model.parameters())
        return largest * (TRAINED_BYTES if config.method == "full" else DTYPE_BYTES[compute.dtype])
    sizes = [model_bytes(model, config, compute, layer) for layer in decoder_layers(model)]
    return max(model_bytes(model, config, compute) - sum(sizes), *sizes)
