"""The finished chunks of a build on disk: each appears by one rename, so that a killed build can go on from them."""

from __future__ import annotations

import os
import shutil
from typing import TYPE_CHECKING

import orjson

from mft_data.dataset.staging import sync_tree
from mft_data.execution.encode_chunk import ChunkResult, encode_chunk, result_document, result_from

if TYPE_CHECKING:
    from pathlib import Path

    import numpy as np

    from mft_data.encoding.encoder import Encoder
    from mft_data.execution.read_chunk import Work
    from mft_data.reading.chunks import Chunk

RESULT = "result.json"


def chunk_dir(chunks_dir: Path, index: int) -> Path:
    """Where the finished chunk of this index lies."""
    return chunks_dir / f"{index:06}"


def finished_chunk(chunks_dir: Path, index: int) -> ChunkResult | None:
    """What a chunk told when it was finished, or None."""
    path = chunk_dir(chunks_dir, index) / RESULT
    return result_from(orjson.loads(path.read_bytes())) if path.is_file() else None


def finish_chunk(
    work: Work, encoder: Encoder, chunk: Chunk, is_dropped: np.ndarray | None, chunks_dir: Path
) -> ChunkResult:
    """Encodes a chunk and puts it in the store; raises DataError or OSError and then leaves nothing."""
    partial = chunks_dir / f".{chunk.index:06}-{os.getpid()}"
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    try:
        result = encode_chunk(work, encoder, chunk, is_dropped, partial)
        (partial / RESULT).write_bytes(orjson.dumps(result_document(result)))
        sync_tree(partial)
        partial.rename(chunk_dir(chunks_dir, chunk.index))
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return result
