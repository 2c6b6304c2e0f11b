"""The decoder layers of a model of any family."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import nn


def decoder_layers(model: nn.Module) -> list[nn.Module]:
    """The layers that transformers can recompute one by one, in order; empty for a model that is not built so."""
    from transformers.modeling_layers import GradientCheckpointingLayer

    return [module for module in model.modules() if isinstance(module, GradientCheckpointingLayer)]
