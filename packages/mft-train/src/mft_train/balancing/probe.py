"""The validation rows that a balancer measures in training: a few of each task, the same for the whole run.

A balancer looks at how losses change. What two draws of rows differ by is many times that, so there is one draw.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from mft_train.rows.dataset_dir import DatasetDir, to_row, unsupervised

if TYPE_CHECKING:
    from collections.abc import Sequence

    from mft_train.rows.dataset_dir import Task
    from mft_train.rows.packed_batch import Row


# Keeps the probe's draw apart from every other use of the run's seed.
PROBE_STREAM = 0x9B0BE


class Probe:
    """The rows that the updates of a run measure, the same for every number of processes.

    The first update measures every task; each later one the next `most_tasks` of them in turn, all if None.
    """

    def __init__(
        self, dataset: DatasetDir, tasks: Sequence[Task], num_rows: int, seed: int, most_tasks: int | None = None
    ) -> None:
        from streaming import LocalDataset

        self.streams = [LocalDataset(local=str(dataset.split_dir("validation", task))) for task in tasks]
        self.chosen = [
            draw_rows(seed, task.task_id, len(stream), num_rows)
            for task, stream in zip(tasks, self.streams, strict=True)
        ]
        self.most_tasks = most_tasks

    def rows(self, update: int, rank: int, world_size: int) -> list[Row]:
        """This rank's share of the rows that update number `update`, from 0, measures."""
        pairs = [
            (self.streams[position], index)
            for position in measured_tasks(update, len(self.streams), self.most_tasks)
            for index in self.chosen[position]
        ]
        own = [to_row(stream[index]) for stream, index in pairs[rank::world_size]]
        is_short = len(own) < -(-len(pairs) // world_size)  # every rank makes as many forward passes
        stream, index = pairs[-1]
        return [*own, unsupervised(to_row(stream[index]))] if is_short else own


def measured_tasks(update: int, num_tasks: int, most: int | None) -> list[int]:
    """The positions of the tasks that an update measures: all in the first, then `most` of them in turn."""
    if not update or most is None or most >= num_tasks:
        return list(range(num_tasks))
    start = (update - 1) * most
    return sorted((start + offset) % num_tasks for offset in range(most))


def draw_rows(seed: int, task_id: int, available: int, wanted: int) -> list[int]:
    """Different row numbers below `available`, `wanted` of them if there are as many, from a generator of their own."""
    generator = np.random.default_rng([PROBE_STREAM, seed, task_id])
    return sorted(generator.choice(available, min(wanted, available), replace=False).tolist())
