"""Loading the model to train, with its weights or as a shape without them."""

from __future__ import annotations

import contextlib
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mft_train.errors import TrainError, first_line, is_out_of_memory
from mft_train.model import segment_attention
from mft_train.model.adapter import add_adapter
from mft_train.model.base_weights import stored_weights
from mft_train.model.lora_linear import fuse_adapters
from mft_train.model.quantization import keep_exact, quantized_loading
from mft_train.model.stored_weights import find_stored, set_sources

if TYPE_CHECKING:
    from collections.abc import Iterator

    import torch
    from transformers import PreTrainedModel

    from mft_train.config.config import RunConfig
    from mft_train.model.compute import Compute
    from mft_train.rows.dataset_dir import DatasetDir


def load_model(
    config: RunConfig,
    compute: Compute,
    dataset: DatasetDir,
    weights_dir: Path | None = None,
    *,
    is_placed: bool = True,
    is_hollow: bool = False,
) -> PreTrainedModel:
    """The model to train, in train mode; raises TrainError if it does not fit the dataset.

    It is on its device, or without `is_placed` on the CPU for an engine to place. One that `is_hollow` has weights of
    no value, which take no memory until they are written to, and know where a rank can read its share of them.

    Weights that are trained are float32 (bfloat16 compute is then autocast); a frozen base is kept in the compute type.
    Without `is_placed` full training gets them as they lie in their files: pages of these, no memory of the process.
    `weights_dir` holds a full model of the same shape, as a checkpoint does, whose weights replace the base's.
    """
    import torch

    check_model_dir(config.model)
    segment_attention.register()
    frozen_base = config.method != "full"
    dtype = getattr(torch, compute.dtype) if frozen_base else torch.float32
    if is_hollow:
        model = hollow_base(config, compute, dtype)
        set_sources(model, find_stored(model, config, str(weights_dir or config.model)))
    else:
        is_as_stored = not is_placed and not frozen_base
        stored = stored_weights(str(weights_dir or config.model))[0] if is_as_stored else None
        model = load_base(config, compute, getattr(torch, stored) if stored else dtype, weights_dir)
        model.config.dtype = dtype
    vocabulary = num_embeddings(model)
    if dataset.max_token_id >= vocabulary:
        raise TrainError(
            f"the dataset has token ids up to {dataset.max_token_id}, the model has {vocabulary} embeddings",
            where=str(dataset.path),
            fix="build the dataset with this model's tokenizer",
        )
    if compute.gradient_checkpointing:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    if config.method == "qlora":
        keep_exact(model, compute)
    if frozen_base:
        model = add_adapter(model, config)
        fuse_adapters(model)
    return (model.to(compute.device) if is_placed and config.method != "qlora" else model).train()


def load_base(config: RunConfig, compute: Compute, dtype: torch.dtype, weights_dir: Path | None) -> Any:
    """The base model with its weights, or with those of a full model in `weights_dir`; raises TrainError."""
    from transformers import AutoModelForCausalLM

    source = str(weights_dir or config.model)
    with loading(source):
        loaded: Any = AutoModelForCausalLM.from_pretrained(
            source,
            dtype=dtype,
            attn_implementation=compute.attention,
            trust_remote_code=config.trust_remote_code,
            output_loading_info=True,
            **(quantized_loading(config, compute) if config.method == "qlora" else {}),
        )
        model, found = loaded
    if found["missing_keys"]:
        raise TrainError(
            f'weight "{min(found["missing_keys"])}" is missing, it would be random',
            where=source,
            fix="delete this checkpoint" if weights_dir else "give a causal language model with all its weights",
        )
    return model


def hollow_base(config: RunConfig, compute: Compute, dtype: torch.dtype) -> Any:
    """The base model on the CPU, its weights without values and so without memory; its buffers have theirs."""
    import torch
    from accelerate import init_empty_weights
    from torch import nn
    from transformers import AutoConfig, AutoModelForCausalLM, GenerationConfig

    with loading(config.model):
        shape = AutoConfig.from_pretrained(config.model, trust_remote_code=config.trust_remote_code)
        with init_empty_weights(include_buffers=False):
            model = AutoModelForCausalLM.from_config(
                shape, dtype=dtype, attn_implementation=compute.attention, trust_remote_code=config.trust_remote_code
            )
        with contextlib.suppress(OSError):  # not every model has one
            model.generation_config = GenerationConfig.from_pretrained(config.model)
    for prefix, module in model.named_modules():
        for name, weight in module._parameters.items():
            if weight is not None:
                kept = exact_dtype(model, f"{prefix}.{name}", weight.dtype)
                module._parameters[name] = nn.Parameter(torch.empty_like(weight, dtype=kept, device="cpu"))
        if module._buffers and not module._parameters:  # made anew as transformers does: some came in a smaller type
            with torch.no_grad():
                model._init_weights(module)
    model.tie_weights()
    return model


def exact_dtype(model: PreTrainedModel, name: str, dtype: torch.dtype) -> torch.dtype:
    """The type in which transformers loads a weight: some families keep a few in float32."""
    import torch

    if dtype not in (torch.float16, torch.bfloat16):
        return dtype
    kept = getattr(model, "_keep_in_fp32_modules_strict", None) or ()
    return torch.float32 if any(part in name for part in kept) else dtype


def num_embeddings(model: PreTrainedModel) -> int:
    """Token ids that the model can read."""
    embeddings: Any = model.get_input_embeddings()
    return getattr(embeddings.weight, "ds_shape", embeddings.weight.shape)[0]  # ZeRO's share of it has none


def empty_model(config: RunConfig) -> PreTrainedModel:
    """The model to train, its adapter included, with shapes but without weights; raises TrainError."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    check_model_dir(config.model)
    with loading(config.model):
        shape = AutoConfig.from_pretrained(config.model, trust_remote_code=config.trust_remote_code)
        with torch.device("meta"):
            model = AutoModelForCausalLM.from_config(shape, trust_remote_code=config.trust_remote_code)
    if config.method == "full":
        return model
    with torch.device("meta"):
        return add_adapter(model, config)


@contextlib.contextmanager
def loading(model: str) -> Iterator[None]:
    """Turns what transformers raises for a model that it cannot load into one line."""
    try:
        yield
    except (OSError, ValueError, KeyError, RuntimeError) as error:
        if is_out_of_memory(error):
            raise
        reason = first_line(error)
        if "trust_remote_code" in str(error):
            raise TrainError(
                f'model "{model}" is made by Python code that comes with it',
                fix="set trust_remote_code: true if you trust that code",
            ) from error
        if re.search("does not support .*attention", reason, re.IGNORECASE):
            raise TrainError(f'model "{model}" does not support this attention', fix="set attention: eager") from error
        raise TrainError(f'model "{model}" cannot be loaded: {reason}') from error


def check_model_dir(model: str) -> None:
    """Raises TrainError for a local path that is not a model; other names are left to the hub."""
    path = Path(model)
    if path.is_dir():
        if not (path / "config.json").is_file():
            raise TrainError(f'model "{model}" has no config.json', fix="give a Hugging Face model directory")
    elif path.is_absolute() or model.startswith(".") or model.count("/") > 1 or model.endswith("/") or path.exists():
        raise TrainError(f'model "{model}" is not a directory', fix="give a Hugging Face model directory or hub id")
