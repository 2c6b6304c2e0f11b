"""What a model's forward is called with: the keywords of a packed batch that this model takes."""

from __future__ import annotations

import functools
import inspect
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import nn

    from mft_train.rows.packed_batch import PackedBatch

BORDERS = ("cu_seq_lens_q", "cu_seq_lens_k", "max_length_q", "max_length_k", "conversations")


def forward_keywords(model: nn.Module, batch: PackedBatch) -> dict[str, Any]:
    """The batch's keywords that the model's forward accepts; code that comes with a model may know few of them.

    A batch of one conversation has no borders: recurrent layers that cannot keep conversations apart refuse any.
    flash-attn gets them all the same, or it would look for them in the positions, which waits for the device.
    """
    keywords = batch.forward_keywords()
    accepted, takes_all = accepted_keywords(type(bare(model)))
    has_borders = len(batch.segment_tokens) > 1 or attention_name(model).startswith("flash")
    return {
        name: value
        for name, value in keywords.items()
        if (takes_all or name in accepted) and (has_borders or name not in BORDERS)
    }


def keeps_positions(model: nn.Module) -> bool:
    """Whether the model can be asked for logits at given positions only."""
    accepted, takes_all = accepted_keywords(type(bare(model)))
    return takes_all or "logits_to_keep" in accepted


def attention_name(model: nn.Module) -> str:
    """The attention implementation that the model was loaded with, by transformers' name."""
    config: Any = bare(model).config
    return str(config.get_text_config()._attn_implementation)


def bare(model: Any) -> nn.Module:
    """The model of transformers within wrappers of processes and adapters."""
    model = getattr(model, "module", model)
    return model.get_base_model() if hasattr(model, "peft_config") else model


@functools.cache
def accepted_keywords(model_class: type) -> tuple[frozenset[str], bool]:
    """The names that the forward of a class of models takes, and whether it takes any other."""
    parameters = inspect.signature(model_class.forward).parameters.values()  # ty: ignore[missing-attribute]
    names = frozenset(parameter.name for parameter in parameters)
    return names, any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters)
