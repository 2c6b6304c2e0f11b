"""Proof that packed conversations do not see each other."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from mft_train.errors import TrainError
from mft_train.model import segment_attention
from mft_train.model.forward_pass import attention_name, forward_keywords, keeps_positions
from mft_train.model.load import num_embeddings
from mft_train.rows.packed_batch import Row, pack_rows

if TYPE_CHECKING:
    from torch import nn
    from transformers import PreTrainedModel


# Largest difference, relative to the largest logit, between a conversation packed with another and alone: other shapes
# round otherwise. Among rows of one shape only the experts of a mixture round a little.
ISOLATION_TOLERANCE = {"float32": 1e-4, "bfloat16": 5e-2}
LEAK_TOLERANCE = {"float32": 1e-5, "bfloat16": 1e-3}
FIRST, SECOND = 11, 13  # tokens of the two conversations that are tried


def check_isolation(model: PreTrainedModel, dtype: str, *, is_packed: bool = True) -> None:
    """Raises TrainError unless two conversations in one row have the logits that each has alone.

    And unless those of the second are the same whatever the first one says: a weak leak, as that of a recurrent layer
    whose state decays, hides in the rounding of bfloat16 otherwise. A run whose forward passes hold one conversation
    each, `is_packed` false, needs no more than that they work.
    """
    import torch

    attention = attention_name(model)
    instead = f"set attention: {'eager' if attention == segment_attention.NAME else segment_attention.NAME}"
    unpacked = "build the dataset with --packing none and set micro_batch_size: 1"
    fix = unpacked if is_recurrent(model) else f"{instead}; or {unpacked}"
    first, second, other = trial_conversations(num_embeddings(model))
    training = model.training
    model.eval()
    try:
        with torch.no_grad():
            alone = torch.cat([row_logits(model, row_of(part)) for part in (first, second)], dim=1)
            packed, changed = alone, alone
            if is_packed:
                packed, changed = (row_logits(model, row_of(part, second)) for part in (first, other))
    except ValueError as error:
        reason = str(error).splitlines()[0]
        what = f"attention {attention} cannot run this model: {reason}"
        raise TrainError(what, fix=unpacked if is_recurrent(model) else instead) from error
    finally:
        model.train(training)
    if not alone.isfinite().all():
        raise TrainError("the model's logits are not finite", fix="its weights are damaged, or need dtype: float32")
    largest = alone.abs().max()
    difference = ((packed - alone).abs().max() / largest).item()
    leak = ((packed - changed)[:, FIRST - 1 :].abs().max() / largest).item()
    worst = max(difference, leak)
    if not (difference <= ISOLATION_TOLERANCE[dtype] and leak <= LEAK_TOLERANCE[dtype]):
        raise TrainError(
            f"conversations in a packed row see each other: logits differ by {worst:.1e} of the largest",
            fix=fix,
        )


def trial_conversations(vocabulary: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Random token ids: a first conversation, a second, and another first one."""
    generator = np.random.default_rng(0)
    ids = generator.integers(0, vocabulary, size=FIRST + SECOND)
    return ids[:FIRST], ids[FIRST:], generator.integers(0, vocabulary, size=FIRST)


def row_of(*conversations: np.ndarray) -> Row:
    """A row of these conversations, every token supervised."""
    ids = np.concatenate(conversations)
    return Row(ids, np.ones(len(ids), dtype=np.uint8), np.array([len(part) for part in conversations]), 0)


def is_recurrent(model: nn.Module) -> bool:
    """Whether layers carry a state along the row, which no attention keeps apart: they begin with a Conv1d."""
    from torch import nn

    return any(isinstance(module, nn.Conv1d) for module in model.modules())


def row_logits(model: nn.Module, row: Row) -> Any:
    """Logits that predict the supervised tokens of one row: (1, P, vocabulary)."""
    batch = pack_rows([row]).to(next(model.parameters()).device)
    logits = model(**forward_keywords(model, batch)).logits
    return logits if keeps_positions(model) else logits[:, batch.predict_positions]
