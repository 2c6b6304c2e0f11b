"""The rows of one chunk on disk, as MDS samples without the columns that only some datasets have."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from mft_data.dataset.mds import EXTRA_COLUMNS, num_segments_of, with_extra
from mft_data.rows.split import SPLITS

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Iterator, Mapping
    from pathlib import Path


class ChunkFiles:
    """The row files of a chunk being written: for each split the samples end to end, the size of each, extra columns.

    The samples have no extra columns in them yet: which ones the dataset has is known when all chunks are done.
    """

    def __init__(self, out: Path) -> None:
        self.out = out

    def __enter__(self) -> ChunkFiles:
        self.samples = {split: (self.out / f"{split}.samples").open("wb") for split in SPLITS}
        self.sizes = {split: (self.out / f"{split}.sizes").open("wb") for split in SPLITS}
        self.extra = {
            (split, name): (self.out / f"{split}.{name}").open("wb") for split in SPLITS for name in EXTRA_COLUMNS
        }
        return self

    def __exit__(self, *_: object) -> None:
        for handle in (*self.samples.values(), *self.sizes.values(), *self.extra.values()):
            handle.close()

    def write(self, split: str, samples: Iterable[bytes], columns: Mapping[str, np.ndarray]) -> None:
        """Appends samples, and the extra columns of all their segments."""
        sizes = [self.samples[split].write(sample) for sample in samples]
        self.sizes[split].write(np.array(sizes, np.uint32).tobytes())
        for name, column in columns.items():
            self.extra[split, name].write(column.tobytes())


def read_samples(chunk_dir: Path, split: str, extra: Collection[str]) -> Iterator[bytes]:
    """The samples of a finished chunk, with these of the extra columns."""
    sizes = np.fromfile(chunk_dir / f"{split}.sizes", np.uint32).tolist()
    columns = [
        np.fromfile(chunk_dir / f"{split}.{name}", encoding.removeprefix("ndarray:"))
        for name, encoding in EXTRA_COLUMNS.items()
        if name in extra
    ]
    done = 0
    with (chunk_dir / f"{split}.samples").open("rb") as handle:
        for size in sizes:
            sample = handle.read(size)
            if columns:
                num_segments = num_segments_of(sample)
                sample = with_extra(sample, [column[done : done + num_segments] for column in columns])
                done += num_segments
            yield sample
