"""Rows of a cache: chosen, joined with others, freed of padding that no row needs.

Rows end at the same column: what is shorter is padded on the left, where the attention mask hides it.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import Cache

# Layers that are known to be no more than keys and values by column, and states by row.
JOINABLE = {
    "DynamicLayer",
    "GrowingLayer",
    "DynamicSlidingWindowLayer",
    "LinearAttentionLayer",
    "LinearAttentionAndFullAttentionLayer",
    "LinearAttentionAndSlidingWindowAttentionLayer",
    "DummyLayer",
}


def is_joinable(cache: "Cache") -> bool:
    """Whether the rows of such a cache can be joined with those of another."""
    return all(type(layer).__name__ in JOINABLE for layer in cache.layers)


def is_recurrent(cache: "Cache") -> bool:
    """Whether some layer keeps a state that is no list of columns."""
    return any(hasattr(layer, "recurrent_states") for layer in cache.layers)


def choose_rows(cache: "Cache", rows: list[int]) -> None:
    """Keep these rows, in this order; a row may be there many times."""
    import torch

    from mft_infer.decoding.growing_layer import GrowingLayer

    chosen = torch.tensor(rows, device=_device(cache))
    layers: list[Any] = cache.layers
    for layer in layers:
        if isinstance(layer, GrowingLayer):
            layer.choose_rows(rows)
        else:
            layer.reorder_cache(chosen)


def join_rows(cache: "Cache", other: "Cache", width: int, other_width: int) -> None:
    """Add the rows of another cache after those of `cache`; the widths are the columns that each has taken in."""
    from mft_infer.decoding.growing_layer import GrowingLayer

    pairs: Any = zip(cache.layers, other.layers, strict=True)
    for layer, newer in pairs:
        if isinstance(layer, GrowingLayer):
            layer.widen(max(other_width - width, 0))
            layer.add_rows(newer)
        else:
            _widen(layer, max(other_width - width, 0))
            _widen(newer, max(width - other_width, 0))
            _add_rows(layer, newer)


def drop_columns(cache: "Cache", count: int) -> None:
    """Forget the first columns, which are padding in all rows."""
    from mft_infer.decoding.growing_layer import GrowingLayer

    layers: list[Any] = cache.layers
    for layer in layers:
        if isinstance(layer, GrowingLayer):
            layer.drop_columns(count)
        elif not _has_columns(layer):
            continue
        elif layer.is_sliding:
            layer.cumulative_length -= count
            kept = min(layer.cumulative_length, layer.sliding_window - 1)
            layer.keys, layer.values = layer.keys[:, :, -kept:], layer.values[:, :, -kept:]
        else:
            layer.keys, layer.values = layer.keys[:, :, count:], layer.values[:, :, count:]


def has_columns(cache: "Cache") -> bool:
    """Whether some layer keeps keys and values by column."""
    return any(_has_columns(layer) for layer in cache.layers)


def _has_columns(layer: Any) -> bool:
    keys = getattr(layer, "keys", None)
    return keys is not None and keys.dim() == 4


def _widen(layer: Any, count: int) -> None:
    """Put columns of zeros before those that the layer has taken in; a sliding window keeps the last ones."""
    from torch.nn.functional import pad

    if not count or not _has_columns(layer):
        return
    if layer.is_sliding:
        layer.cumulative_length += count
        count = min(layer.cumulative_length, layer.sliding_window - 1) - layer.keys.shape[2]
    layer.keys, layer.values = (pad(tensor, (0, 0, count, 0)) for tensor in (layer.keys, layer.values))


def _add_rows(layer: Any, newer: Any) -> None:
    import torch

    if _has_columns(layer):
        layer.keys = torch.cat([layer.keys, newer.keys])
        layer.values = torch.cat([layer.values, newer.values])
    for name in ("conv_states", "recurrent_states"):
        states: dict[int, Tensor | None] = getattr(layer, name, {})
        for index, state in states.items():
            if state is not None:
                states[index] = torch.cat([state, getattr(newer, name)[index]])


def _device(cache: "Cache") -> Any:
    devices = (getattr(layer, "device", None) for layer in cache.layers)
    return next(device for device in devices if device is not None)
