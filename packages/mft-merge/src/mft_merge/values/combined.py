"""One update made of those of several adapters by a rule of PEFT's: TIES, DARE, pruning."""

import warnings
import zlib
from typing import TYPE_CHECKING

from mft_merge.planning.weighted import Combination

if TYPE_CHECKING:
    from torch import Tensor


def combined(place: str, deltas: list["Tensor"], weights: list[float], combination: Combination) -> "Tensor":
    """The update that the rule makes of those of several adapters, (rows, columns) each, and of their weights.

    What is left to chance depends on the seed and on `place`, PEFT's name of the layer, and on nothing else.
    Source: TIES, arXiv:2306.01708; DARE, arXiv:2311.03099.
    """
    import torch
    from peft.utils import merge_utils

    rule = getattr(merge_utils, combination.rule)
    with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it warns that a density of 1 keeps all
        torch.manual_seed(zlib.crc32(f"{combination.seed} {place}".encode()))
        return rule(deltas, torch.tensor(weights), combination.density)
