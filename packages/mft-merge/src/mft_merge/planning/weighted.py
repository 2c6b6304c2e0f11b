"""Several adapters at once: each one's updates times its weight, added to the same base."""

from dataclasses import replace

from mft_merge.errors import MergeError
from mft_merge.planning.changes import Change


def weighted_changes(parts: list[tuple[dict[str, Change], float]]) -> dict[str, Change]:
    """The changes of all adapters, by the name of the stored tensor; W becomes W + the sum of weight * scale * B @ A.

    Only updates and what is added to biases can be weighted: a tensor that one adapter puts in the place of the base's,
    and DoRA's magnitudes, have no sum that would be right, and are refused by name.
    """
    if len(parts) == 1 and parts[0][1] == 1:
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
            target = combined.setdefault(name, Change())
            for index, blocks in change.blocks.items():
                scaled = [
                    replace(block, update=replace(block.update, scale=block.update.scale * weight)) for block in blocks
                ]
                target.blocks.setdefault(index, []).extend(scaled)
            target.shifts.extend((values, scale * weight) for values, scale in change.shifts)
            target.is_quantized |= change.is_quantized
    return combined
