"""Proof that packed conversations do not see each other."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from mft_train.errors import TrainError
from mft_train.model import segment_attention
from mft_train.model.load import num_embeddings
from mft_train.rows.packed_batch import Row, pack_rows

if TYPE_CHECKING:
    from torch import nn
    from transformers import PreTrainedModel


# Largest difference, relative to the largest logit, between a conversation packed with another and alone.
ISOLATION_TOLERANCE = {"float32": 1e-4, "bfloat16": 5e-2}


def check_isolation(model: PreTrainedModel, dtype: str, *, is_packed: bool = True) -> None:
    """Raises TrainError unless two conversations in one row have the logits that each has alone.

    A run whose forward passes hold one conversation each, `is_packed` false, needs no more than that they work.
    """
    import torch

    attention = model.config.get_text_config()._attn_implementation
    instead = f"set attention: {'eager' if attention == segment_attention.NAME else segment_attention.NAME}"

    vocabulary = num_embeddings(model)
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
