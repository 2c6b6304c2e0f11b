"""Prompts of many lengths as one tensor, padded on the left."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor


def padded(prompts: list[list[int]], device: Any) -> tuple["Tensor", "Tensor"]:
    """The ids (rows, columns) with zeros before the shorter prompts, and the attention mask that hides them."""
    import torch

    width = max(map(len, prompts))
    rows = [[0] * (width - len(ids)) + ids for ids in prompts]
    return torch.tensor(rows, device=device), padding_mask([len(ids) for ids in prompts], width, device)


def padding_mask(lengths: list[int], width: int, device: Any) -> "Tensor":
    """(rows, width), int64: ones in the last `lengths` columns of each row, zeros before."""
    import torch

    starts = torch.tensor([[width - length] for length in lengths], device=device)
    return (torch.arange(width, device=device) >= starts).long()
