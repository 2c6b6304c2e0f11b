"""One update made of those of several adapters by a rule of PEFT's: TIES, DARE, pruning."""

import warnings
import zlib
from typing import TYPE_CHECKING

from mft_merge.errors import MergeError
from mft_merge.planning.weighted import Combination

if TYPE_CHECKING:
    from torch import Tensor


def check_can_combine() -> None:
    """Raise where PEFT is not installed."""
    try:
        from peft.utils import merge_utils  # noqa: F401
    except ImportError as error:
        raise MergeError(
            "--combine with another rule than linear is PEFT's", fix='install it with: pip install "mft-merge[verify]"'
        ) from error


def combined(
    place: str, terms: list[tuple["Tensor", "Tensor", float]], weights: list[float], combination: Combination
) -> "Tensor":
    """The (rows, columns) update that the rule makes of scale * left @ right of every term and of their weights.

    What is left to chance depends on the seed and on `place`, the name of the matrix, and on nothing else.
    Source: TIES, arXiv:2306.01708; DARE, arXiv:2311.03099.
    """
    import torch
    from peft.utils import merge_utils

    rule = getattr(merge_utils, combination.rule)
    deltas = [(left @ right) * scale for left, right, scale in terms]
    with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it warns that a density of 1 keeps all
        torch.manual_seed(zlib.crc32(f"{combination.seed} {place}".encode()))
        return rule(deltas, torch.tensor(weights), combination.density)
