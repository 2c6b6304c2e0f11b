"""torch.compile on each decoder layer in place: one graph serves all layers, and no weight changes its name."""

from __future__ import annotations

import os
import shutil
from typing import TYPE_CHECKING

from mft_train.errors import TrainError
from mft_train.model import segment_attention
from mft_train.model.decoder_layers import decoder_layers

if TYPE_CHECKING:
    from torch import nn

    from mft_train.config.config import RunConfig
    from mft_train.model.compute import Compute

OFF = "set compile: false"


def check_compile(config: RunConfig, compute: Compute) -> None:
    """Raises TrainError if layers are to be compiled and cannot be."""
    if not config.compile:
        return
    if not any(shutil.which(name) for name in (os.environ.get("CXX", ""), "c++", "g++", "clang++")):
        raise TrainError("compile needs a C++ compiler, none is found", fix=f"install g++, or {OFF}")
    if compute.gradient_checkpointing and compute.attention == segment_attention.NAME:
        # This attention reads the borders of conversations, which breaks a graph; recomputed graphs cannot be broken.
        raise TrainError(
            "compile has no effect on recomputed layers with attention segments",
            fix=f"set attention: sdpa, or gradient_checkpointing: false, or {OFF}",
        )


def compile_layers(model: nn.Module) -> None:
    """Compiles every decoder layer for rows of any length when it first runs; raises TrainError if there is none."""
    layers = decoder_layers(model)
    if not layers:
        raise TrainError("compile finds no decoder layers in this model", fix=OFF)
    for layer in layers:
        layer.compile(dynamic=True)
