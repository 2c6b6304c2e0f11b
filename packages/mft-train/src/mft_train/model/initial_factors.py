"""Adapters that begin as a part of the base's weight, which the base loses; as plain LoRA on the whole base in files.

W - s B0 A0 + s B A is W + s [B, -B0] [A; A0]: an adapter of twice the rank that any reader puts on the base as it is.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import orjson

from mft_train.config.adapter_config import BASE_CHANGING_INITS
from mft_train.errors import TrainError
from mft_train.model.lora_linear import ADAPTER

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

    from torch import Tensor, nn

ENDINGS = {"a": f".lora_A.{ADAPTER}.weight", "b": f".lora_B.{ADAPTER}.weight"}


def take_from_base(model: nn.Module, init: str) -> None:
    """Gives every adapter its part of the base's weight by peft's own code, where `init` is one that does so."""
    if init not in BASE_CHANGING_INITS:
        return
    for name, layer in adapted_layers(model):
        rank, least = layer.r[ADAPTER], min(layer.base_layer.weight.shape)
        if rank > least:
            raise TrainError(f'lora.rank {rank} is above the {least} directions of "{name}"', fix="set a smaller rank")
        layer.pissa_init(ADAPTER, init) if init == "pissa" else layer.olora_init(ADAPTER)
        keep(model, name, layer)


def give_back(model: nn.Module, saved: Mapping[str, Tensor], init: str) -> dict[str, Tensor]:
    """Takes out of the base what a saved adapter began with; its trained half, by the names that peft saves."""
    own = dict(saved)
    if init not in BASE_CHANGING_INITS:
        return own
    for name, layer in adapted_layers(model):
        rank, scaling, weight = layer.r[ADAPTER], layer.scaling[ADAPTER], layer.base_layer.weight
        first, second = (f"{name}{ending.replace(f'.{ADAPTER}', '')}" for ending in ENDINGS.values())
        if first not in own or second not in own or len(own[first]) != 2 * rank:
            continue  # what does not fit is told by the caller
        a, b = own[first], own[second]
        own[first], own[second] = a[:rank].contiguous(), b[:, :rank].contiguous()
        factors = layer.lora_A[ADAPTER].weight, layer.lora_B[ADAPTER].weight
        factors[0].data = a[rank:].contiguous().to(weight.device)
        factors[1].data = -b[:, rank:].contiguous().to(weight.device)
        rest = weight.data.float() - scaling * factors[1].data @ factors[0].data
        weight.data = rest.to(weight.dtype)
        keep(model, name, layer)
    return own


def adapted_layers(model: nn.Module) -> Iterator[tuple[str, Any]]:
    """The layers with an adapter and their names; raises TrainError for one that is not linear."""
    from peft.tuners.lora import Linear, LoraLayer
    from torch import nn

    for name, layer in model.named_modules():
        if isinstance(layer, LoraLayer):
            if not isinstance(layer, Linear) or type(layer.base_layer) is not nn.Linear:
                raise TrainError(f'"{name}" is no linear layer to begin an adapter with', fix="set lora.init: kaiming")
            yield name, layer


def keep(model: Any, name: str, layer: Any) -> None:
    """Remembers what an adapter begins with, by the names of its parameters."""
    if not hasattr(model, "initial_factors"):
        model.initial_factors = {}
    factors = layer.lora_A[ADAPTER].weight, layer.lora_B[ADAPTER].weight
    for ending, factor in zip(ENDINGS.values(), factors, strict=True):
        model.initial_factors[f"{name}{ending}"] = factor.detach().to("cpu", copy=True)


def as_difference(model: Any, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors of an adapter, with what it began with as a second half of each pair of factors."""
    import torch

    initial = getattr(model, "initial_factors", {})
    joined = dict(tensors)
    for name in initial.keys() & joined.keys():
        if name.endswith(ENDINGS["a"]):
            joined[name] = torch.cat([joined[name], initial[name]])
        else:
            joined[name] = torch.cat([joined[name], -initial[name]], dim=1)
    return joined


def describe_difference(model: Any, path: Path) -> None:
    """Makes an adapter's config that of the difference: twice the rank at the same scale, on an unchanged base."""
    if not hasattr(model, "initial_factors"):
        return
    config = orjson.loads(path.read_bytes())
    config["lora_alpha"] *= math.sqrt(2) if config["use_rslora"] else 2
    config["r"] *= 2
    config["init_lora_weights"] = True
    path.write_bytes(orjson.dumps(config, option=orjson.OPT_INDENT_2 | orjson.OPT_SORT_KEYS))
