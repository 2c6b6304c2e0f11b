"""The endless, resumable order of training rows, the same for every number of processes."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from mft_train.errors import TrainError
from mft_train.rows.dataset_dir import to_row, unsupervised

if TYPE_CHECKING:
    from collections.abc import Iterator

    from streaming import StreamingDataset

    from mft_train.rows.dataset_dir import DatasetDir
    from mft_train.rows.packed_batch import Row


SAMPLE = "sample"  # the column that `numbered_dataset` adds


@dataclass(frozen=True, slots=True)
class StreamPosition:
    """Rows consumed by finished optimizer steps, over all ranks: whole epochs, and within the current one."""

    epoch: int = 0
    rows: int = 0


@dataclass(frozen=True, slots=True)
class StepRows:
    """One rank's share of a global batch, and where the stream stands after it.

    `row_numbers` are the rows' positions in the training rows of their tasks, as the dataset directory has them.
    """

    rows: list[Row]
    row_numbers: list[int]
    next_position: StreamPosition


class RowStream:
    """Training rows of all tasks, shuffled by streaming, dealt to ranks one row at a time.

    With one canonical node the global order depends on the seed alone, not on the number of processes: the rows of
    optimizer step i are the same set for every world size.
    """

    def __init__(
        self,
        dataset: DatasetDir,
        mixture: dict[str, float],
        global_batch_size: int,
        seed: int,
        rank: int,
        world_size: int,
        repeats: dict[str, float] | None = None,
        num_nodes: int = 1,
    ) -> None:
        from streaming import Stream

        self.place = place_in_deal(rank, world_size, num_nodes)
        self.world_size = world_size
        self.global_batch_size = global_batch_size
        streams = [
            Stream(
                local=str(dataset.split_dir("train", task)),
                proportion=mixture.get(task.name),
                repeat=repeats.get(task.name, 1.0) if repeats else None,
            )
            for task in dataset.trained_tasks
        ]
        self.streaming = numbered_dataset()(
            streams=streams,
            batch_size=global_batch_size // world_size,
            num_canonical_nodes=1,
            shuffle=True,
            shuffle_seed=seed,
        )
        self.epoch_size: int = self.streaming.epoch_size
        offsets = self.streaming.sample_offset_per_stream.tolist()
        self.first_samples = {task.task_id: first for task, first in zip(dataset.trained_tasks, offsets, strict=True)}

    @property
    def steps_per_epoch(self) -> int:
        """Optimizer steps that visit each row of an epoch once; the last may be smaller."""
        return math.ceil(self.epoch_size / self.global_batch_size)

    def steps(self, position: StreamPosition) -> Iterator[StepRows]:
        """This rank's rows of every optimizer step from `position` on, without end.

        A position beyond the epoch, which only other data can have made, is its end.
        """
        if position.rows >= self.epoch_size:
            position = StreamPosition(position.epoch + 1)
        if position != StreamPosition():
            self.streaming.load_state_dict(self.state(position))
        while True:
            yield from self.epoch_steps(position)
            position = StreamPosition(position.epoch + 1)

    def epoch_steps(self, start: StreamPosition) -> Iterator[StepRows]:
        """The steps of one epoch from `start` on; streaming counts the epochs itself after the first."""
        local_batch_size = self.global_batch_size // self.world_size
        samples: list[dict[str, Any]] = []
        done = start.rows
        for sample in self.samples():
            samples.append(sample)
            if len(samples) == local_batch_size:
                yield self.step(samples, done, start.epoch)
                samples, done = [], done + self.global_batch_size
        if samples:
            yield self.step(samples, done, start.epoch)

    def samples(self) -> Iterator[dict[str, Any]]:
        """This rank's samples of one epoch; raises TrainError if a shard cannot be read."""
        try:
            yield from self.streaming
        except (OSError, ValueError) as error:
            cause = error.__context__ if isinstance(error.__context__, OSError) else error
            raise TrainError(f"training rows cannot be read: {cause}", fix="check the dataset's shards") from error

    def step(self, samples: list[dict[str, Any]], done: int, epoch: int) -> StepRows:
        """One rank's rows of the step that begins after `done` rows of the epoch.

        At the end of an epoch streaming evens out the ranks by repeating rows: those lose their loss mask, so that each
        row of an epoch counts once whatever the number of ranks.
        """
        rows = [to_row(sample) for sample in samples]
        numbers = [sample[SAMPLE] - self.first_samples[row.task_id] for sample, row in zip(samples, rows, strict=True)]
        for index, row in enumerate(rows):
            if done + index * self.world_size + self.place >= self.epoch_size:
                rows[index] = unsupervised(row)
        after = min(done + self.global_batch_size, self.epoch_size)
        position = StreamPosition(epoch + 1) if after == self.epoch_size else StreamPosition(epoch, after)
        return StepRows(rows, numbers, position)

    def state(self, position: StreamPosition) -> dict[str, Any]:
        """Streaming's own resume state for a position."""
        return {
            "epoch": position.epoch,
            "sample_in_epoch": position.rows,
            "num_canonical_nodes": 1,
            "shuffle_seed": self.streaming.shuffle_seed,
            "initial_physical_nodes": None,
        }


def place_in_deal(rank: int, world_size: int, num_nodes: int) -> int:
    """Which of `world_size` rows in a row streaming deals to a rank: one to every machine first, then to its next rank.

    Ranks are numbered machine by machine, as many on each.
    """
    node, local_rank = divmod(rank, world_size // num_nodes)
    return local_rank * num_nodes + node


def numbered_dataset() -> type[StreamingDataset]:
    """A StreamingDataset whose samples have one more column: their number over all streams."""
    from streaming import StreamingDataset

    class NumberedDataset(StreamingDataset):
        def get_item(self, sample_id: int, retry: int = 7) -> dict[str, Any]:
            return super().get_item(sample_id, retry) | {SAMPLE: int(sample_id)}

    return NumberedDataset
