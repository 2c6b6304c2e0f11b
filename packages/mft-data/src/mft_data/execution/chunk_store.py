"""The finished chunks of a build on disk: each appears by one rename, so that an unfinished build can go on from them.

The folder of piece 0 of chunk 12 is `000012.0000`. Of a streamed chunk there is also `000012.json`, written when it has
been read to its end: how many pieces it has.
"""

from __future__ import annotations

import hashlib
import shutil
from collections import Counter
from typing import TYPE_CHECKING
from uuid import uuid4

import orjson

from mft_data.dataset.staging import sync_tree
from mft_data.errors import DataError, plural
from mft_data.execution.chunk_result import ChunkResult, result_document, result_from
from mft_data.execution.encode_chunk import encode_chunk
from mft_data.execution.read_chunk import digest_chunk

if TYPE_CHECKING:
    from pathlib import Path

    import numpy as np

    from mft_data.encoding.encoder import Encoder
    from mft_data.execution.read_chunk import Work
    from mft_data.reading.chunks import Chunk

RESULT = "result.json"
# What is not finished begins with a dot, and ends with what no other process takes.
UNFINISHED = "."


def chunk_dir(chunks_dir: Path, key: tuple[int, int]) -> Path:
    """Where the finished piece of a chunk lies."""
    index, piece = key
    return chunks_dir / f"{index:06}.{piece:04}"


def finished_chunk(folder: Path) -> ChunkResult:
    """What a piece of a chunk told when it was finished."""
    return result_from(orjson.loads((folder / RESULT).read_bytes()))


def finish_chunk(
    work: Work, encoder: Encoder, chunk: Chunk, left_out: np.ndarray | None, chunks_dir: Path
) -> ChunkResult:
    """Encodes a piece of a chunk and puts it in the store, unless it is there already.

    Raises DataError or OSError and then leaves nothing; DataError if the piece was finished from other lines than the
    files hold now, or without other conversations than are left out now.
    """
    folder = chunk_dir(chunks_dir, chunk.key)
    left_out_digest = None if left_out is None else hashlib.sha256(left_out.tobytes()).hexdigest()
    if folder.is_dir():
        finished = finished_chunk(folder)
        check_unchanged(work, chunk, finished)
        if finished.left_out_digest != left_out_digest:
            raise DataError(
                "a file has changed since the unfinished build read it, and with it what is left out of others",
                where=f'task "{work.sources[chunk.task].task}"',
                fix="put the old file back, or build anew with --overwrite",
            )
        return finished
    unfinished = chunks_dir / f"{UNFINISHED}{chunk.index:06}.{chunk.piece:04}-{uuid4().hex}"
    unfinished.mkdir()
    try:
        result = encode_chunk(work, encoder, chunk, left_out, unfinished)
        result.left_out_digest = left_out_digest
        (unfinished / RESULT).write_bytes(orjson.dumps(result_document(result)))
        sync_tree(unfinished)
        unfinished.rename(folder)
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)
    return result


def check_unchanged(work: Work, chunk: Chunk, finished: ChunkResult) -> None:
    """Raises DataError if the lines of a finished chunk are not those of its files now."""
    then, now = [facts.digest for facts in finished.spans], digest_chunk(work, chunk)
    if then != now:
        raise DataError(
            "the file has changed since the unfinished build read it",
            where=changed_path(work, chunk, then, now),
            fix="put the old file back, or build anew with --overwrite",
        )


def changed_path(work: Work, chunk: Chunk, then: list[str], now: list[str]) -> str:
    """The file of a chunk whose lines had these digests then, and have others now."""
    # A compressed file that was edited can have other spans in a piece, too.
    first = next((number for number, pair in enumerate(zip(then, now, strict=False)) if pair[0] != pair[1]), -1)
    return str(work.sources[chunk.task].files[chunk.spans[first].file].path)


def remove_unfinished(chunks_dir: Path) -> None:
    """Removes what workers that were killed have left in the store."""
    for path in chunks_dir.glob(f"{UNFINISHED}*"):
        shutil.rmtree(path)


def write_num_pieces(chunks_dir: Path, index: int, num_pieces: int) -> None:
    """Notes that a streamed chunk was read to its end."""
    (chunks_dir / f"{index:06}.json").write_bytes(orjson.dumps(num_pieces))


def stored_chunks(chunks_dir: Path) -> dict[tuple[int, int], Path]:
    """The folder of every finished piece of every whole chunk of a store, in order; raises DataError."""
    folders: dict[tuple[int, int], Path] = {}
    for path in chunks_dir.iterdir():
        index, _, piece = path.name.partition(".")
        if index.isdecimal() and piece.isdecimal() and (path / RESULT).is_file():
            folders[int(index), int(piece)] = path
    for index, num_found in Counter(index for index, _ in folders).items():
        record = chunks_dir / f"{index:06}.json"
        num_pieces = orjson.loads(record.read_bytes()) if record.is_file() else 1
        if num_found != num_pieces:
            what = f"chunk {index} has {num_found} {plural(num_found, 'piece')} instead of {num_pieces}"
            raise DataError(what, where=str(chunks_dir), fix="build it anew with --overwrite")
    return dict(sorted(folders.items()))
