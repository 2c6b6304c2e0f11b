"""Small seeded draws of validation rows, which a balancer measures in training."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from mft_train.rows.dataset_dir import DatasetDir, to_row, unsupervised

if TYPE_CHECKING:
    from collections.abc import Sequence

    from mft_train.rows.dataset_dir import Task
    from mft_train.rows.packed_batch import Row


# Keeps the probe's draws apart from every other use of the run's seed.
PROBE_STREAM = 0x9B0BE


class Probe:
    """Small draws of validation rows of each task, the same for every number of processes."""

    def __init__(self, dataset: DatasetDir, tasks: Sequence[Task], num_rows: int, seed: int) -> None:
        from streaming import LocalDataset

        self.tasks = tasks
        self.num_rows = num_rows
        self.seed = seed
        self.streams = [LocalDataset(local=str(dataset.split_dir("validation", task))) for task in tasks]

    def rows(self, draw: int, rank: int, world_size: int) -> list[Row]:
        """This rank's share of draw number `draw`."""
        pairs = [
            (stream, index)
            for task, stream in zip(self.tasks, self.streams, strict=True)
            for index in draw_rows(self.seed, draw, task.task_id, len(stream), self.num_rows)
        ]
        own = [to_row(stream[index]) for stream, index in pairs[rank::world_size]]
        is_short = len(own) < -(-len(pairs) // world_size)  # every rank makes as many forward passes
        stream, index = pairs[-1]
        return [*own, unsupervised(to_row(stream[index]))] if is_short else own


def draw_rows(seed: int, draw: int, task_id: int, available: int, wanted: int) -> list[int]:
    """Different row numbers below `available`, `wanted` of them if there are as many, from a generator of their own."""
    generator = np.random.default_rng([PROBE_STREAM, seed, draw, task_id])
    return generator.permutation(available)[:wanted].tolist()
