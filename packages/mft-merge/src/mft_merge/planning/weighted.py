"""Several adapters at once: each one's updates times its weight, added to the same base."""

from dataclasses import dataclass, replace

from mft_merge.errors import MergeError
from mft_merge.planning.changes import Change


@dataclass(frozen=True, slots=True)
class Combination:
    """How the updates of several adapters become one where they are not just added.

    `rule` is the name of a function in PEFT's merge_utils, `density` the share of each update's values that is kept,
    and `seed` chooses them where that is left to chance.
    """

    rule: str
    density: float
    seed: int


def weighted_changes(
    parts: list[tuple[dict[str, Change], float]], combination: Combination | None = None
) -> dict[str, Change]:
    """The changes of all adapters, by the name of the stored tensor; W becomes W + the sum of weight * scale * B @ A.

    With a combination the weights stay beside the updates, as its rule applies them.
    Only updates and what is added to biases can be weighted: a tensor that one adapter puts in the place of the base's,
    and DoRA's magnitudes, have no sum that would be right, and are refused by name.
    """
    if combination is None and len(parts) == 1 and parts[0][1] == 1:
        return parts[0][0]
    combined: dict[str, Change] = {}
    for changes, weight in parts:
        for name, change in changes.items():
            magnitudes = [block.update.magnitude for blocks in change.blocks.values() for block in blocks]
            if change.replacement or change.base_copy or change.rows or any(magnitudes):
                culprit = next(filter(None, magnitudes), None) or change.some_tensor
                raise MergeError(
                    f'adapter tensor "{culprit.name}" cannot be weighted or joined with another adapter',
                    where=str(culprit.path),
                    fix="merge this adapter alone",
                )
            if combination is not None:
                _check_combinable(change)
            target = combined.setdefault(name, Change())
            for index, blocks in change.blocks.items():
                if combination is None:
                    scaled = [replace(block.update, scale=block.update.scale * weight) for block in blocks]
                    ready = [replace(block, update=update) for block, update in zip(blocks, scaled, strict=True)]
                else:
                    ready = [replace(block, weight=weight) for block in blocks]
                target.blocks.setdefault(index, []).extend(ready)
            target.shifts.extend((values, scale * weight) for values, scale in change.shifts)
            target.is_quantized |= change.is_quantized
    return combined


def _check_combinable(change: Change) -> None:
    """Refuse what is no update of one whole matrix: rules look at all values of an update together."""
    if change.shifts or any(block.shape is not None for blocks in change.blocks.values() for block in blocks):
        raise MergeError(
            f'adapter tensor "{change.some_tensor.name}" is no update of a whole stored matrix and can only be added',
            where=str(change.some_tensor.path),
            fix="use --combine linear",
        )
