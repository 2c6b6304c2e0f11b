"""One output shard: header, copied payloads and merged tiles, written while the next tile is computed."""

import os
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Executor, Future, ThreadPoolExecutor, wait
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from xxhash import xxh3_64

from mft_merge.files.tensor_file import make_header, memory_of, payload_chunks
from mft_merge.planning.plan import OutputTensor
from mft_merge.sources.base_model import BaseModel
from mft_merge.values.low_rank_factors import update_norm
from mft_merge.values.merged_values import Norms, merged_tiles

if TYPE_CHECKING:
    from torch import Tensor

# What is written is brought to the disk in pieces of about this size.
SYNCED_BYTES = 1 << 26
# What has a call made by a thread, in any order, and what has calls made one after the other.
Compute = Callable[..., Future[Any]]
Submit = Callable[[Callable[[], Any]], None]
# More threads than these are not faster: the disk and the memory are busy.
MOST_COMPUTING = 4


def shard_header(name: str, tensors: list[OutputTensor], base: BaseModel) -> bytes:
    """The header of an output shard; the base's own bytes where the layout is that of its shard of this name."""
    shard = next((shard for shard in base.shards if shard.path.name == name), base.shards[0])
    layout = [(tensor.name, tensor.dtype, tensor.source.shape) for tensor in tensors]
    if layout == [(tensor.name, tensor.dtype, tensor.shape) for tensor in shard.tensors.values()]:
        return shard.header
    sizes = [tensor.num_bytes for tensor in tensors]
    return make_header([(*entry, size) for entry, size in zip(layout, sizes, strict=True)], shard.metadata)


def write_shard(
    path: Path, header: bytes, tensors: list[OutputTensor], advance: Callable[[int], None], syncing: Executor
) -> Future[dict[str, Any]]:
    """Write a shard under a partial name; the result is its record, once it is on the disk and has its name.

    The record has, for every tensor that is no copy, the XXH3 of its payload and the norm of its update. `syncing`
    has one thread: it brings to the disk what is written while the rest, and the next shard, are computed.
    """
    partial = path.with_name(f"{path.name}.partial")
    records: dict[str, dict[str, Any]] = {}
    syncs: list[Future[None]] = []
    stream = partial.open("wb", buffering=0)

    def finish() -> dict[str, Any]:
        with stream:
            for sync in syncs:
                sync.result()  # an error of the disk is told to one sync alone
            os.fsync(stream.fileno())
        partial.replace(path)
        return {"tensors": {name: {**found, "checksum": found["checksum"].value} for name, found in records.items()}}

    try:
        with _workers() as (compute, submit):
            stream.write(len(header).to_bytes(8, "little") + header)
            unsynced = 0
            for tensor in tensors:
                if tensor.is_copy:
                    submit(lambda source=tensor.source: _copy(source, stream.fileno()))
                else:
                    records[tensor.name] = _write_merged(tensor, stream.fileno(), compute, submit)
                unsynced += tensor.num_bytes
                if unsynced > SYNCED_BYTES:
                    unsynced = 0
                    submit(lambda: syncs.append(syncing.submit(os.fdatasync, stream.fileno())))
                advance(tensor.num_bytes)
    except BaseException:
        wait(syncs)
        stream.close()
        raise
    return syncing.submit(finish)


def _write_merged(tensor: OutputTensor, descriptor: int, compute: Compute, submit: Submit) -> dict[str, Any]:
    """Have the tiles of a tensor computed and written; its part of the record, whose checksum grows meanwhile."""
    checksum = _Checksum()
    norms = Norms()
    for step in merged_tiles(tensor, norms):
        tile = compute(step)
        submit(lambda tile=tile: checksum.write(descriptor, tile.result()))
    quantization = norms.quantization_square**0.5 if tensor.quantization else None
    return {"checksum": checksum, "norm": update_norm(tensor), "quantization_norm": quantization}


def is_finished(path: Path, header: bytes, tensors: list[OutputTensor], record: dict[str, Any]) -> bool:
    """Whether the file at `path` holds what its record says, byte for byte."""
    if not path.is_file() or path.stat().st_size != 8 + len(header) + sum(tensor.num_bytes for tensor in tensors):
        return False
    with path.open("rb") as stream:
        if stream.read(8 + len(header)) != len(header).to_bytes(8, "little") + header:
            return False
        for tensor in tensors:
            if tensor.is_copy:
                if any(stream.read(len(chunk)) != chunk for chunk in payload_chunks(tensor.source)):
                    return False
            elif _checksum_of(stream, tensor.num_bytes) != record["tensors"].get(tensor.name, {}).get("checksum"):
                return False
    return True


class _Checksum:
    """Writes tiles and keeps the XXH3 of all of them."""

    def __init__(self) -> None:
        self.digest = xxh3_64()

    @property
    def value(self) -> str:
        return self.digest.hexdigest()

    def write(self, descriptor: int, tile: "Tensor") -> None:
        view = memory_of(tile)
        self.digest.update(view)
        _write_all(descriptor, view)


def _checksum_of(stream: Any, num_bytes: int) -> str:
    digest = xxh3_64()
    while num_bytes:
        chunk = stream.read(min(num_bytes, 1 << 20))
        digest.update(chunk)
        num_bytes -= len(chunk)
    return digest.hexdigest()


def _copy(source: Any, descriptor: int) -> None:
    """Copy a payload within the kernel, or through memory where the file systems cannot."""
    with source.path.open("rb", buffering=0) as stream:
        done = 0
        while done < source.num_bytes:
            try:
                copied = os.copy_file_range(
                    stream.fileno(), descriptor, source.num_bytes - done, offset_src=source.offset + done
                )
            except OSError:
                copied = 0
            if not copied:
                break
            done += copied
    if done < source.num_bytes:
        for chunk in payload_chunks(source, done):
            _write_all(descriptor, memoryview(chunk))


def _write_all(descriptor: int, view: memoryview) -> None:
    while len(view):
        view = view[os.write(descriptor, view) :]


@contextmanager
def _workers() -> Iterator[tuple[Compute, Submit]]:
    """Threads that compute tiles, and one that does what it is given in order; errors of both come back here."""
    import torch

    num_computing = min(MOST_COMPUTING, len(os.sched_getaffinity(0)))
    pending: deque[Future[Any]] = deque()

    def submit(action: Callable[[], Any]) -> None:
        pending.append(writing.submit(action))
        if len(pending) > 2 * num_computing:
            pending.popleft().result()

    num_threads = torch.get_num_threads()
    torch.set_num_threads(1)  # tiles have threads of their own; more in each of them only wait for another
    try:
        with ThreadPoolExecutor(num_computing) as computing, ThreadPoolExecutor(1) as writing:
            yield computing.submit, submit
            for future in pending:
                future.result()
    finally:
        torch.set_num_threads(num_threads)
