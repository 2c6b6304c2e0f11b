"""Generations put back into the order of what was asked, as early as that order allows."""

from collections.abc import Iterable, Iterator

from mft_infer.output.generation import Generation


def in_order(generations: Iterable[Generation], keys: list[tuple[str, int]]) -> Iterator[Generation]:
    """The generations in the order of `keys`, each as soon as all before it are there."""
    waiting: dict[tuple[str, int], Generation] = {}
    num_given = 0
    for generation in generations:
        waiting[generation.key] = generation
        while num_given < len(keys) and keys[num_given] in waiting:
            yield waiting.pop(keys[num_given])
            num_given += 1
