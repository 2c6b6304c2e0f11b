"""The endless, resumable order of training rows, the same for every number of processes."""

from __future__ import annotations

import contextlib
import math
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mft_train.errors import TrainError, first_line
from mft_train.rows.dataset_dir import to_row, unsupervised
from mft_train.rows.remote import locked, training_limit, verified_stream

if TYPE_CHECKING:
    from collections.abc import Iterator
    from concurrent.futures import Future

    from streaming import Stream, StreamingDataset

    from mft_train.rows.dataset_dir import DatasetDir, Task
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
        self.place = place_in_deal(rank, world_size, num_nodes)
        self.world_size = world_size
        self.global_batch_size = global_batch_size
        self.streams = [
            open_stream(
                dataset,
                task,
                proportion=mixture.get(task.name),
                repeat=repeats.get(task.name, 1.0) if repeats else None,
            )
            for task in dataset.trained_tasks
        ]
        folders = [dataset.split_dir("train", task) for task in dataset.trained_tasks]
        self.streaming = numbered_dataset()(
            streams=self.streams,
            cache_limit=training_limit(dataset.remote[1], dataset.path, folders) if dataset.remote else None,
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
        except (OSError, ValueError, RuntimeError) as error:
            self.check_threads()
            raise unreadable(error) from error
        self.check_threads()

    def check_threads(self) -> None:
        """Raises what a thread of streaming's has met, as a TrainError: streaming ends the epoch as if it were over."""
        error: BaseException | None = getattr(self.streaming, "failure")  # noqa: B009 - of NumberedDataset
        if error is not None:
            raise error if isinstance(error, TrainError) else unreadable(error) from error

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


def unreadable(error: BaseException) -> TrainError:
    """The error for training rows that cannot be read."""
    cause = error.__context__ if isinstance(error.__context__, OSError) else error
    return TrainError(f"training rows cannot be read: {first_line(cause)}", fix="check the dataset's shards")


def open_stream(dataset: DatasetDir, task: Task, *, proportion: float | None, repeat: float | None) -> Stream:
    """The training rows of a task: on this machine, or fetched from its store shard by shard as they are needed."""
    local = str(dataset.split_dir("train", task))
    if dataset.remote is None:
        from streaming import Stream

        return Stream(local=local, proportion=proportion, repeat=repeat)
    stream: Any = verified_stream()
    return stream(dataset.remote[0], f"train/{task.name}", local=local, proportion=proportion, repeat=repeat)


def place_in_deal(rank: int, world_size: int, num_nodes: int) -> int:
    """Which of `world_size` rows in a row streaming deals to a rank: one to every machine first, then to its next rank.

    Ranks are numbered machine by machine, as many on each.
    """
    node, local_rank = divmod(rank, world_size // num_nodes)
    return local_rank * num_nodes + node


@contextlib.contextmanager
def left_by_failure(iteration: Any) -> Iterator[None]:
    """Says that one of streaming's threads has left an iteration where it fails; at its end alone streaming does."""
    try:
        yield
    except Exception:
        iteration.on_exit()
        raise


def numbered_dataset() -> type[StreamingDataset]:
    """A StreamingDataset whose samples have one more column: their number over all streams.

    A shard that could not be fetched is missing again, and whoever waited for it tries: for streaming it would be on
    its way for ever, and every process of the machine would wait.
    """
    from streaming import StreamingDataset
    from streaming.base.dataset import _ShardState

    class NumberedDataset(StreamingDataset):
        failure: BaseException | None = None

        def prepare_shard(self, shard_id: int, blocking: bool = True) -> None:  # noqa: ARG002
            while True:
                try:
                    # With a limit one at a time: streaming counts what comes after it has come.
                    with locked(Path(self.streams[0].local)) if self.cache_limit else contextlib.nullcontext():
                        super().prepare_shard(shard_id, blocking=True)
                except Exception as error:
                    self._shard_states[shard_id] = _ShardState.REMOTE
                    self.fail(error)
                    raise
                if self._shard_states[shard_id] != _ShardState.REMOTE:
                    return

        # At the end of an epoch streaming waits until both of its threads have left it.
        def _prepare_thread(self, it: Any) -> None:
            with left_by_failure(it):
                super()._prepare_thread(it)

        def _ready_thread(self, it: Any) -> None:
            with left_by_failure(it):
                super()._ready_thread(it)

        def on_exception(self, future: Future[Any]) -> None:
            if error := future.exception():
                self.fail(error)

        def fail(self, error: BaseException) -> None:
            self.failure = self.failure or error  # before the event, on which the loop looks for it
            if hasattr(self, "_event"):
                self._event.set()  # ends streaming's threads, which the process would wait for

        def get_item(self, sample_id: int, retry: int = 7) -> dict[str, Any]:
            return super().get_item(sample_id, retry) | {SAMPLE: int(sample_id)}

    return NumberedDataset
