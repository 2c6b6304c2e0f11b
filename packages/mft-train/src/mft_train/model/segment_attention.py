"""Attention over packed rows that runs each conversation by itself.

Isolation holds by construction: no query ever meets a key of another conversation, no mask is built and no square
of the whole row is computed. Registered with transformers under the name `segments`.
"""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor, nn

NAME = "segments"


def register() -> None:
    """Makes `attn_implementation="segments"` known to transformers; calling it again changes nothing."""
    from transformers import AttentionInterface, AttentionMaskInterface

    AttentionInterface.register(NAME, segment_attention)
    AttentionMaskInterface.register(NAME, no_mask)


def no_mask(*args: Any, **kwargs: Any) -> None:
    """No mask: the borders in `cu_seq_lens_q` say everything."""


def segment_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    cu_seq_lens_q: Tensor | None = None,
    scaling: float | None = None,
    dropout: float = 0.0,
    sliding_window: int | None = None,
    softcap: float | None = None,
    s_aux: Tensor | None = None,
    **_: Any,
) -> tuple[Tensor, None]:
    """Causal attention within each segment: (1, length, heads, head_dim), and no attention weights.

    `query` is (1, heads, length, head_dim), `key` and `value` the same with their own number of heads;
    `cu_seq_lens_q` (num_segments + 1,) holds the segments' borders, all of it one segment if None. Raises ValueError
    for what it cannot compute: a mask, attention sinks, soft-capped scores, bidirectional attention.
    """
    import torch
    from torch.nn import functional as F

    if attention_mask is not None or softcap is not None or s_aux is not None or not getattr(module, "is_causal", True):
        raise ValueError("attention by segment knows no mask, soft cap, sink or bidirectional attention")
    if query.shape[0] != 1:
        raise ValueError("attention by segment takes one packed row")
    borders = [0, query.shape[2]] if cu_seq_lens_q is None else cu_seq_lens_q.tolist()
    grouped = query.shape[1] != key.shape[1]
    outputs = []
    for start, stop in itertools.pairwise(borders):
        length = stop - start
        window = window_mask(length, sliding_window, query) if sliding_window and length > sliding_window else None
        outputs.append(
            F.scaled_dot_product_attention(
                query[:, :, start:stop],
                key[:, :, start:stop],
                value[:, :, start:stop],
                attn_mask=window,
                dropout_p=dropout,
                is_causal=window is None,
                scale=scaling,
                enable_gqa=grouped,
            )
        )
    return torch.cat(outputs, dim=2).transpose(1, 2).contiguous(), None


def window_mask(length: int, window: int, like: Tensor) -> Tensor:
    """True where a query may look: itself and the `window - 1` tokens before it; (length, length)."""
    import torch

    offsets = torch.arange(length, device=like.device)
    distance = offsets[:, None] - offsets[None, :]
    return (distance >= 0) & (distance < window)
