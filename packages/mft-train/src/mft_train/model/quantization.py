"""The frozen base in 4 or 8 bits by bitsandbytes, for method qlora, and the record of it that a merge needs."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import orjson

from mft_train.errors import TrainError
from mft_train.model.int8_linear import compute_exactly, int8_layers

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

    from torch import nn

    from mft_train.config.adapter_config import QuantizationConfig
    from mft_train.config.config import RunConfig
    from mft_train.model.compute import Compute

FORMAT_VERSION = "1"
RECORD = "quantization.json"
BLOCK_SIZE = 64  # numbers with one scale; bitsandbytes' own for 4 bits


def quantized_loading(config: RunConfig, compute: Compute) -> dict[str, Any]:
    """Keywords for `from_pretrained` that quantise every linear layer but the output projection, on its device."""
    import torch
    from transformers import BitsAndBytesConfig

    settings = config.quantization
    if settings.type == "int8":
        quantization = BitsAndBytesConfig(load_in_8bit=True)
    else:
        quantization = BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type=settings.type,
            bnb_4bit_use_double_quant=settings.double_quant,
            bnb_4bit_compute_dtype=getattr(torch, compute.dtype),
            # What fsdp gathers it may cast to the compute type: not if it has that.
            bnb_4bit_quant_storage=compute.dtype if config.distributed.engine == "fsdp" else "uint8",
        )
    return {"quantization_config": quantization, "device_map": {"": compute.device}}


def keep_exact(model: nn.Module, compute: Compute) -> None:
    """Lets quantised layers compute in the compute type alone; raises TrainError for layers that would be wrong.

    On CPUs with bfloat16 products bitsandbytes packs 4-bit weights anew at the first evaluation, and goes on in
    training with what it made: coarser, and without a gradient for the layers below. And its CPU kernel gives wrong
    weights back where a row is no multiple of a block.
    """
    import torch
    from bitsandbytes.nn import Linear4bit

    for name, module in model.named_modules():
        if isinstance(module, Linear4bit):
            module.support_avx512bf16_for_cpu = False
            if compute.device.type == "cpu" and module.in_features % BLOCK_SIZE:
                raise TrainError(
                    f'layer "{name}" is {module.in_features} wide, which bitsandbytes gets wrong on a CPU: '
                    f"it is no multiple of {BLOCK_SIZE}",
                    fix="set quantization.type: int8, or method: lora",
                )
    for module in int8_layers(model).values():
        compute_exactly(module, getattr(torch, compute.dtype))


def quantized_modules(model: nn.Module) -> list[str]:
    """The names, in the base model, of the layers whose weight is quantised."""
    from bitsandbytes.nn import Linear4bit

    names = [name for name, module in model.named_modules() if isinstance(module, Linear4bit)]
    names += int8_layers(model)
    return sorted(name.removeprefix("base_model.model.").removesuffix(".base_layer") for name in names)


def write_record(model: Any, directory: Path) -> None:
    """Writes how the base was quantised beside an adapter, if it was."""
    if getattr(model, "is_loaded_in_4bit", False):
        how = four_bit_record(model)
    elif getattr(model, "is_loaded_in_8bit", False):
        layer = next(iter(int8_layers(model).values()))
        how = {"type": "int8", "load_dtype": str(layer.compute_dtype).removeprefix("torch.")}
    else:
        return
    document = {"format_version": FORMAT_VERSION, **how, "modules": quantized_modules(model)}
    (directory / RECORD).write_bytes(orjson.dumps(document, option=orjson.OPT_INDENT_2) + b"\n")


def four_bit_record(model: nn.Module) -> dict[str, Any]:
    """How the weights of a model in 4 bits were quantised."""
    from bitsandbytes.nn import Linear4bit

    layers: list[Any] = [module for module in model.modules() if isinstance(module, Linear4bit)]
    state = layers[0].quant_state
    return {
        "type": state.quant_type,
        "block_size": state.blocksize,
        "double_quantization": bool(state.nested),
        "load_dtype": str(state.dtype).removeprefix("torch."),
    }


def quantized_bytes(shapes: Iterable[tuple[int, ...]], settings: QuantizationConfig) -> int:
    """Bytes of weights of these (out, in) shapes in 4 bits, or in 8, with their scales.

    In 4 bits each block has a scale of 4 bytes, or of little more than one; in 8 bits each row one of 4 bytes.
    """
    sizes = [(rows, rows * columns) for rows, columns in shapes]
    if settings.type == "int8":
        return sum(size + 4 * rows for rows, size in sizes)
    num_weights = sum(size for _, size in sizes)
    num_blocks = -(-num_weights // BLOCK_SIZE)
    scales = num_blocks + 4 * -(-num_blocks // 256) if settings.double_quant else 4 * num_blocks
    return num_weights // 2 + scales
