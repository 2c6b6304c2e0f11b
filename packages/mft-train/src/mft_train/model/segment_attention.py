"""Attention over packed rows that runs each conversation by itself.

Isolation holds by construction: no query ever meets a key of another conversation, no mask is built and no square
of the whole row is computed. Registered with transformers under the name `segments`.
"""

from __future__ import annotations

import functools
import inspect
import itertools
from typing import TYPE_CHECKING, Any

import torch  # noqa: TID253 - a function is kept out of compiled graphs where it is defined; only a run imports this
from torch.nn import functional as F  # noqa: TID253

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor, nn

    from mft_train.rows.packed_batch import Conversations

NAME = "segments"
VARLEN_DTYPES = (torch.bfloat16, torch.float16)
MOST_VARLEN_HEAD_DIM = 256


def register() -> None:
    """Makes `attn_implementation="segments"` known to transformers; calling it again changes nothing."""
    from transformers import AttentionInterface, AttentionMaskInterface

    AttentionInterface.register(NAME, segment_attention)
    AttentionMaskInterface.register(NAME, no_mask)


def no_mask(*args: Any, **kwargs: Any) -> None:
    """No mask: the borders in the keywords say everything."""


def segment_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    cu_seq_lens_q: Tensor | None = None,
    max_length_q: int | None = None,
    conversations: Conversations | None = None,
    scaling: float | None = None,
    dropout: float = 0.0,
    sliding_window: int | None = None,
    softcap: float | None = None,
    s_aux: Tensor | None = None,
    **_: Any,
) -> tuple[Tensor, None]:
    """Causal attention within each segment: (1, length, heads, value_dim), and no attention weights.

    `query` is (1, heads, length, head_dim), `key` and `value` the same with their own number of heads and, for values,
    width. `cu_seq_lens_q` (num_segments + 1,) int32 holds the segments' borders, `conversations` the same on the host:
    no layer waits for the device. Without borders all of it is one segment. `softcap` bounds the scores, `s_aux`
    (heads,) is an attention sink. Raises ValueError for what it cannot compute: a mask, bidirectional attention.
    """
    if attention_mask is not None or not getattr(module, "is_causal", True):
        raise ValueError("attention by segment knows no mask and no bidirectional attention")
    if query.shape[0] != 1:
        raise ValueError("attention by segment takes one packed row")
    query, key, value = in_compute_type(query, key, value)
    is_plain = softcap is None and s_aux is None
    if is_plain and not dropout and cu_seq_lens_q is not None and max_length_q is not None and has_varlen(query):
        return varlen_attention(query, key, value, cu_seq_lens_q, max_length_q, scaling, sliding_window), None
    if conversations is not None:
        borders = conversations.borders
    else:
        borders = (0, query.shape[2]) if cu_seq_lens_q is None else tuple(cu_seq_lens_q.tolist())
    outputs = by_segment(
        query,
        key,
        value,
        borders,
        scaling=scaling,
        dropout=dropout,
        window=sliding_window,
        softcap=softcap,
        sinks=s_aux,
    )
    return outputs, None


def in_compute_type(*tensors: Tensor) -> list[Tensor]:
    """The tensors in the type that autocast computes in here, or as they are without it.

    Rotary embeddings leave queries and keys of a model with float32 weights in float32, which kernels do not take.
    """
    kind = tensors[0].device.type
    if not torch.is_autocast_enabled(kind):
        return list(tensors)
    return [tensor.to(torch.get_autocast_dtype(kind)) for tensor in tensors]


def has_varlen(query: Tensor) -> bool:
    """Whether torch's own attention over segments of many lengths runs on this query."""
    return (
        query.is_cuda
        and query.dtype in VARLEN_DTYPES
        and query.shape[-1] <= MOST_VARLEN_HEAD_DIM
        and varlen_kernel() is not None
    )


@functools.cache
def varlen_kernel() -> Callable[..., Any] | None:
    """torch's attention over segments of many lengths, None where this torch has none with windows."""
    try:
        from torch.nn.attention import varlen
    except ImportError:  # before torch 2.10
        return None
    return varlen.varlen_attn if keywords_of(varlen.varlen_attn) >= {"scale", "window_size"} else None


@functools.cache
def keywords_of(function: Callable[..., Any]) -> frozenset[str]:
    """The names of a function's parameters."""
    return frozenset(inspect.signature(function).parameters)


def varlen_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    borders: Tensor,
    longest: int,
    scaling: float | None,
    window: int | None,
) -> Tensor:
    """Causal attention within segments by one kernel: (1, length, heads, value_dim).

    `borders` (num_segments + 1,) int32 lies on the device, `longest` is the length of the longest segment. The kernel
    wants values as wide as queries: narrower ones (latent attention) get zeros, which come out as zeros.
    """
    kernel: Any = varlen_kernel()
    width = value.shape[-1]
    value = F.pad(value, (0, query.shape[-1] - width)) if width < query.shape[-1] else value
    groups = query.shape[1] // key.shape[1]
    grouping = {"enable_gqa": groups > 1} if "enable_gqa" in keywords_of(kernel) else {}
    if groups > 1 and not grouping:  # torch 2.11 says nothing of grouped heads
        key, value = (tensor.repeat_interleave(groups, dim=1) for tensor in (key, value))
    query, key, value = (tensor[0].transpose(0, 1).contiguous() for tensor in (query, key, value))
    out = kernel(
        query,
        key,
        value,
        borders,
        borders,
        longest,
        longest,
        scale=scaling,
        window_size=(window - 1 if window else -1, 0),
        **grouping,
    )
    return out[None, ..., :width]


@torch.compiler.disable  # a graph would be made anew for every set of borders
def by_segment(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    borders: tuple[int, ...],
    *,
    scaling: float | None,
    dropout: float,
    window: int | None,
    softcap: float | None,
    sinks: Tensor | None,
) -> Tensor:
    """Causal attention within segments, one after the other: (1, length, heads, value_dim)."""
    is_plain = softcap is None and sinks is None
    outputs = []
    for start, stop in itertools.pairwise(borders):
        length = stop - start
        mask = window_mask(length, window, query) if window and length > window else None
        own_query, own_key, own_value = (tensor[:, :, start:stop] for tensor in (query, key, value))
        if is_plain:
            outputs.append(sdpa(own_query, own_key, own_value, mask, scaling, dropout))
        else:
            outputs.append(explicit_attention(own_query, own_key, own_value, mask, scaling, dropout, softcap, sinks))
    return torch.cat(outputs, dim=2).transpose(1, 2).contiguous()


def sdpa(
    query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, scaling: float | None, dropout: float
) -> Tensor:
    """torch's own attention of one segment, causal without a mask: (1, heads, length, value_dim)."""
    return F.scaled_dot_product_attention(
        query,
        key,
        value,
        attn_mask=mask,
        dropout_p=dropout,
        is_causal=mask is None,
        scale=scaling,
        enable_gqa=query.shape[1] != key.shape[1],
    )


def explicit_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor | None,
    scaling: float | None,
    dropout: float,
    softcap: float | None,
    sinks: Tensor | None,
) -> Tensor:
    """Attention of one segment with scores bounded by `softcap` * tanh(score / softcap), or with a sink in each head.

    A sink takes part in the softmax, in float32 or wider, and has no value. Returns (1, heads, length, value_dim).
    """
    length, groups = query.shape[2], query.shape[1] // key.shape[1]
    key, value = (tensor.repeat_interleave(groups, dim=1) for tensor in (key, value))
    scores = query @ key.transpose(-1, -2) * (query.shape[-1] ** -0.5 if scaling is None else scaling)
    if softcap is not None:
        scores = softcap * torch.tanh(scores / softcap)
    allowed = window_mask(length, length, query) if mask is None else mask
    scores = scores.masked_fill(~allowed, float("-inf"))
    scores = scores if scores.dtype == torch.float64 else scores.float()
    if sinks is not None:
        column = sinks.to(scores.dtype)[None, :, None, None].expand(1, -1, length, 1)
        scores = torch.cat([scores, column], dim=-1)
    weights = scores.softmax(-1)[..., :length].to(value.dtype)
    return F.dropout(weights, dropout) @ value


def window_mask(length: int, window: int, like: Tensor) -> Tensor:
    """True where a query may look: itself and the `window - 1` tokens before it; (length, length)."""
    offsets = torch.arange(length, device=like.device)
    distance = offsets[:, None] - offsets[None, :]
    return (distance >= 0) & (distance < window)
