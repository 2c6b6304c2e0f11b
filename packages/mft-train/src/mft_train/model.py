"""Loading the base model, adding the adapter, and proving that packed conversations do not see each other."""

from __future__ import annotations

import contextlib
import importlib.util
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from mft_train import segment_attention
from mft_train.errors import TrainError
from mft_train.lora_linear import fuse_adapters
from mft_train.out_of_memory import is_out_of_memory
from mft_train.packed_batch import Row, pack_rows

if TYPE_CHECKING:
    from collections.abc import Iterator

    import torch
    from torch import nn

    from mft_train.config import RunConfig
    from mft_train.dataset_dir import DatasetDir

# Largest difference, relative to the largest logit, between a conversation packed with another and alone.
ISOLATION_TOLERANCE = {"float32": 1e-4, "bfloat16": 5e-2}


def run_device() -> torch.device:
    """The kind of device that a run on this machine uses."""
    import torch

    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def resolve_dtype(config: RunConfig, device: torch.device) -> str:
    """The compute type's name; `auto` is float32 on a CPU, where bfloat16 is emulated, and bfloat16 elsewhere."""
    if config.dtype != "auto":
        return config.dtype
    return "float32" if device.type == "cpu" else "bfloat16"


def resolve_attention(config: RunConfig, device: torch.device) -> str:
    """The attention implementation's name; raises TrainError if flash-attn is asked for and cannot run."""
    has_flash = importlib.util.find_spec("flash_attn") is not None and device.type == "cuda"
    if config.attention == "flash_attention_2" and not has_flash:
        raise TrainError(
            "attention flash_attention_2 needs a CUDA device and the flash-attn package",
            fix="pip install mft-train[flash-attn], or set attention: segments",
        )
    if config.attention == "auto":
        return "flash_attention_2" if has_flash else segment_attention.NAME
    return config.attention


def load_model(config: RunConfig, dataset: DatasetDir, device: torch.device) -> nn.Module:
    """The model to train, in train mode on `device`; raises TrainError if it does not fit the dataset.

    Weights that are trained are float32 (bfloat16 compute is then autocast); a frozen base is kept in the compute type.
    """
    import torch
    from transformers import AutoModelForCausalLM

    check_model_dir(config.model)
    segment_attention.register()
    frozen_base = config.method == "lora"
    dtype = getattr(torch, resolve_dtype(config, device)) if frozen_base else torch.float32
    attention = resolve_attention(config, device)
    with loading(config.model):
        model = AutoModelForCausalLM.from_pretrained(config.model, dtype=dtype, attn_implementation=attention)
    num_embeddings = model.get_input_embeddings().weight.shape[0]
    if dataset.max_token_id >= num_embeddings:
        raise TrainError(
            f"the dataset has token ids up to {dataset.max_token_id}, the model has {num_embeddings} embeddings",
            where=str(dataset.path),
            fix="build the dataset with this model's tokenizer",
        )
    if config.gradient_checkpointing is True:  # `auto` is settled before, where the memory is known
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    if frozen_base:
        model = add_adapter(model, config)
        fuse_adapters(model)
    return model.to(device).train()


def empty_model(config: RunConfig) -> nn.Module:
    """The model to train, its adapter included, with shapes but without weights; raises TrainError."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    check_model_dir(config.model)
    with loading(config.model):
        shape = AutoConfig.from_pretrained(config.model)
        with torch.device("meta"):
            model = AutoModelForCausalLM.from_config(shape)
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
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
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


def add_adapter(model: nn.Module, config: RunConfig) -> nn.Module:
    """The model with a LoRA adapter, B zero, the base frozen; raises TrainError for targets it does not have."""
    from peft import LoraConfig, get_peft_model

    settings = config.lora
    adapter = LoraConfig(
        task_type="CAUSAL_LM",
        r=settings.rank,
        lora_alpha=settings.alpha,
        lora_dropout=settings.dropout,
        target_modules=settings.target_modules,
    )
    if Path(config.model).is_dir():
        # The adapter must find its base from any working directory.
        model.name_or_path = str(Path(config.model).resolve())
    try:
        peft_model = get_peft_model(model, adapter)
    except ValueError as error:
        raise TrainError(
            f"no adapter can be made: {str(error).splitlines()[0]}", fix="set lora.target_modules to names in the model"
        ) from error
    return peft_model


def check_isolation(model: nn.Module, dtype: str, *, is_packed: bool = True) -> None:
    """Raises TrainError unless two conversations in one row have the logits that each has alone.

    A run whose forward passes hold one conversation each, `is_packed` false, needs no more than that they work.
    """
    import torch

    attention = model.config.get_text_config()._attn_implementation
    instead = f"set attention: {'eager' if attention == segment_attention.NAME else segment_attention.NAME}"

    vocabulary = model.get_input_embeddings().weight.shape[0]
    ids = np.random.default_rng(0).integers(0, vocabulary, size=24)
    mask = np.ones(24, dtype=np.uint8)
    whole = Row(ids, mask, np.array([11, 13]), 0)
    parts = [Row(ids[:11], mask[:11], np.array([11]), 0), Row(ids[11:], mask[11:], np.array([13]), 0)]
    training = model.training
    model.eval()
    try:
        with torch.no_grad():
            packed = row_logits(model, whole)
            alone = torch.cat([row_logits(model, part) for part in parts], dim=1)
    except ValueError as error:
        reason = str(error).splitlines()[0]
        raise TrainError(f"attention {attention} cannot run this model: {reason}", fix=instead) from error
    finally:
        model.train(training)
    if not alone.isfinite().all():
        raise TrainError("the model's logits are not finite", fix="its weights are damaged, or need dtype: float32")
    difference = ((packed - alone).abs().max() / alone.abs().max()).item()
    if is_packed and not difference <= ISOLATION_TOLERANCE[dtype]:
        raise TrainError(
            f"conversations in a packed row see each other: logits differ by {difference:.1e} of the largest",
            fix=f"{instead}; or build the dataset with --packing none and set micro_batch_size: 1",
        )


def row_logits(model: nn.Module, row: Row) -> Any:
    """Logits that predict the supervised tokens of one row: (1, P, vocabulary)."""
    device = next(model.parameters()).device
    return model(**pack_rows([row]).to(device).forward_keywords()).logits
