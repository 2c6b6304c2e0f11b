"""Packed rows laid end to end as one batch without padding, and the forward keywords that keep them apart."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Sequence

    import torch
    from torch import Tensor


@dataclass(frozen=True, slots=True)
class Row:
    """One packed row of a task: conversations end to end.

    `input_ids` and `loss_mask` are (length,) integer arrays, `segment_lengths` (num_segments,) sums to length;
    `segment_weights` (num_segments,) is how much each conversation counts, None where all count alike.
    """

    input_ids: np.ndarray
    loss_mask: np.ndarray
    segment_lengths: np.ndarray
    task_id: int
    segment_weights: np.ndarray | None = None


@dataclass(frozen=True, slots=True, eq=False)
class Conversations:
    """The borders of the conversations in a batch, on the host; a value of its own, which nothing copies to a device.

    The G + 1 `borders` begin with 0 and end with T.
    """

    borders: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class PackedBatch:
    """Rows concatenated to T tokens in G conversations with P supervised tokens.

    A token is supervised if its mask is 1 and a token of the same conversation precedes it: the first token of a
    conversation has nothing to be predicted from.
    """

    input_ids: Tensor  # (1, T) int64
    position_ids: Tensor  # (1, T) int64, from 0 in every conversation
    cu_seqlens: Tensor  # (G + 1,) int32, borders of the conversations
    conversations: Conversations  # the same on the host
    max_seqlen: int
    predict_positions: Tensor  # (P,) int64, the positions whose logits predict a supervised token
    labels: Tensor  # (P,) int64, the supervised tokens
    token_segments: Tensor  # (P,) int64, the conversation of each supervised token
    segment_tasks: Tensor  # (G,) int64
    segment_tokens: Tensor  # (G,) int64, supervised tokens of each conversation
    segment_weights: Tensor  # (G,) float64, how much each conversation counts

    def to(self, device: torch.device) -> PackedBatch:
        """The same batch on `device`."""
        moved = {
            name: value.to(device, non_blocking=True) if hasattr(value, "to") else value
            for name in self.__slots__
            for value in (getattr(self, name),)
        }
        return PackedBatch(**moved)

    @property
    def kept_positions(self) -> Tensor:
        """The positions of the logits: those that predict a supervised token, without one the first; (max(P, 1),)."""
        keep = self.predict_positions
        return keep if keep.numel() else keep.new_zeros(1)

    def forward_keywords(self) -> dict[str, Any]:
        """Keywords for a Hugging Face causal model: logits of shape (1, P, vocabulary), attention by conversation.

        No attention mask is passed on purpose: a mask of ones turns the isolation of packed rows off. Without a
        supervised token one position is kept, so that the loss stays connected to every parameter. A batch without
        values (on "meta") brings a mask: transformers would look at the positions.
        """
        length = self.input_ids.shape[1]
        mask = self.input_ids.new_empty(1, 1, 1, 1).expand(1, 1, length, length) if self.input_ids.is_meta else None
        return {
            "input_ids": self.input_ids,
            "position_ids": self.position_ids,
            "attention_mask": mask,
            "use_cache": False,
            "logits_to_keep": self.kept_positions,
            "cu_seq_lens_q": self.cu_seqlens,
            "cu_seq_lens_k": self.cu_seqlens,
            "max_length_q": self.max_seqlen,
            "max_length_k": self.max_seqlen,
            "conversations": self.conversations,
        }


def pack_rows(rows: Sequence[Row]) -> PackedBatch:
    """The batch of one or more rows, on the CPU."""
    import torch

    segment_lengths = np.concatenate([row.segment_lengths for row in rows]).astype(np.int64)
    cu_seqlens = np.concatenate([[0], np.cumsum(segment_lengths)])
    input_ids = np.concatenate([row.input_ids for row in rows]).astype(np.int64)
    position_ids = np.arange(len(input_ids)) - np.repeat(cu_seqlens[:-1], segment_lengths)
    supervised = np.concatenate([row.loss_mask for row in rows]).astype(bool) & (position_ids > 0)
    label_positions = np.flatnonzero(supervised)
    token_segments = np.repeat(np.arange(len(segment_lengths)), segment_lengths)[label_positions]
    segment_tasks = np.concatenate([np.full(len(row.segment_lengths), row.task_id) for row in rows])
    return PackedBatch(
        input_ids=torch.from_numpy(input_ids)[None],
        position_ids=torch.from_numpy(position_ids)[None],
        cu_seqlens=torch.from_numpy(cu_seqlens.astype(np.int32)),
        conversations=Conversations(tuple(cu_seqlens.tolist())),
        max_seqlen=int(segment_lengths.max()),
        predict_positions=torch.from_numpy(label_positions - 1),
        labels=torch.from_numpy(input_ids[label_positions]),
        token_segments=torch.from_numpy(token_segments),
        segment_tasks=torch.from_numpy(segment_tasks.astype(np.int64)),
        segment_tokens=torch.from_numpy(np.bincount(token_segments, minlength=len(segment_lengths)).astype(np.int64)),
        segment_weights=torch.from_numpy(np.concatenate([weights_of(row) for row in rows])),
    )


def weights_of(row: Row) -> np.ndarray:
    """How much each conversation of a row counts: (num_segments,) float64."""
    weights = row.segment_weights
    return np.ones(len(row.segment_lengths)) if weights is None else weights.astype(np.float64)
