"""Builds a dataset directory, or one part of it, from task sources."""

from __future__ import annotations

import gc
from contextlib import closing
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import orjson

from mft_data.dataset.staging import PART, check_output, publish, staging_dir
from mft_data.encoding.encoder import make_encoder
from mft_data.encoding.tokenizer import save_tokenizer
from mft_data.errors import DataError
from mft_data.execution.assemble import assemble_dataset
from mft_data.execution.chunk_store import finish_chunk, finished_chunk
from mft_data.execution.engines import started_engine
from mft_data.execution.plan import all_sources, make_plan, usable_cores
from mft_data.execution.progress import show_progress
from mft_data.execution.read_chunk import Tally, read_chunk
from mft_data.reading.chunks import part_of, plan_chunks
from mft_data.reading.records import Reject, Rejects

if TYPE_CHECKING:
    from pathlib import Path

    from mft_data.encoding.encoder import Encoder
    from mft_data.execution.encode_chunk import ChunkResult
    from mft_data.execution.engines import Here, Processes, Ray
    from mft_data.execution.plan import BuildOptions, Plan
    from mft_data.execution.read_chunk import Work
    from mft_data.reading.chunks import Chunk

    Engine = Here | Processes | Ray


@dataclass(frozen=True, slots=True)
class RunOptions:
    """How a build is carried out, which changes nothing of what is built."""

    num_workers: int | None = None
    engine: str = "processes"
    is_overwrite: bool = False
    is_resume: bool = False
    part: tuple[int, int] | None = None


def build(source_arguments: list[str], out: Path, options: BuildOptions, run: RunOptions) -> dict[str, Any] | None:
    """Builds the dataset `out` and returns its manifest, or builds a part and returns None; raises DataError."""
    sources = all_sources(source_arguments, options.validation_sources)
    check_output(out, run.is_overwrite, [source.path for source in sources])
    if run.part and options.dedup != "none":
        raise DataError("--dedup needs the whole input", fix="build without --part, or deduplicate first")
    all_chunks = plan_chunks(sources, options.seq_length)
    chunks = part_of(all_chunks, *run.part) if run.part else all_chunks
    num_workers = min(run.num_workers or usable_cores(), len(chunks))
    # Worker processes load their libraries while this one loads the tokenizer with transformers.
    with started_engine(run.engine, num_workers) as engine:
        plan = make_plan(sources, options)
        encoder = make_encoder(plan.tokenizer_config, plan.template)  # with checks, before any worker relies on it
        with staging_dir(out, plan.document, run.is_resume) as staging:
            if not (staging / "tokenizer").is_dir():
                save_tokenizer(plan.tokenizer, plan.template.jinja(), staging / "tokenizer")
            run_chunks(plan, encoder, chunks, staging / "chunks", engine)
            if run.part:
                part = {"part": run.part[0], "num_parts": run.part[1], "num_chunks": len(all_chunks)}
                (staging / PART).write_bytes(orjson.dumps(part))
                publish(staging, out)
                return None
            chunks_dirs = dict.fromkeys(range(len(chunks)), staging / "chunks")
            manifest = assemble_dataset(staging / "dataset", plan.document, chunks_dirs, staging / "tokenizer")
            publish(staging / "dataset", out)
    return manifest


def run_chunks(plan: Plan, encoder: Encoder, chunks: list[Chunk], chunks_dir: Path, engine: Engine) -> None:
    """Finishes every chunk that is not finished yet; raises DataError for the first error in the order of the input."""
    chunks_dir.mkdir(exist_ok=True)
    dropped = find_duplicates(plan, chunks, engine) if plan.dedup != "none" else {}
    rejects = Rejects(plan.max_rejects)
    finished = {chunk.index: finished_chunk(chunks_dir, chunk.index) for chunk in chunks}
    jobs = ((encode_job, chunk, dropped.get(chunk.index)) for chunk in chunks if finished[chunk.index] is None)
    num_read = 0
    with (
        closing(engine.run((plan.work, encoder, chunks_dir), jobs)) as results,
        show_progress(sum(chunk.num_bytes for chunk in chunks)) as advance,
    ):
        for chunk in chunks:
            result = finished[chunk.index] or next(results)
            rejects.add([Reject(*reject) for reject in result.rejects])
            num_read += result.counts.read
            advance(chunk.num_bytes, result.num_tokens)
    rejects.check_percent(num_read)


def encode_job(state: tuple[Work, Encoder, Path], chunk: Chunk, is_dropped: np.ndarray | None) -> ChunkResult:
    """Finishes one chunk in a worker."""
    work, encoder, chunks_dir = state
    gc.disable()  # a chunk makes many objects and no cycles: collecting costs a twentieth of the time
    try:
        return finish_chunk(work, encoder, chunk, is_dropped, chunks_dir)
    finally:
        gc.enable()


def find_duplicates(plan: Plan, chunks: list[Chunk], engine: Engine) -> dict[int, np.ndarray]:
    """A boolean per accepted conversation of each chunk, true if an earlier one of the build says the same."""
    from mft_data.filters.duplicates import Duplicates

    duplicates = Duplicates(plan.dedup)
    scanned = engine.run(plan.work, ((scan_job, chunk, plan.dedup == "near") for chunk in chunks))
    return {chunk.index: duplicates.is_duplicate(*found) for chunk, found in zip(chunks, scanned, strict=True)}


def scan_job(work: Work, chunk: Chunk, has_signatures: bool) -> tuple[np.ndarray, np.ndarray | None]:
    """Digests (n, 2) uint64 of a chunk's accepted conversations, and their MinHash signatures if asked for."""
    from mft_data.filters.duplicates import signatures

    records = list(read_chunk(work, chunk, Tally(0, [])))
    digests = np.frombuffer(b"".join(record.digest for record in records), np.uint64).reshape(-1, 2)
    return digests, signatures([record.conversation for record in records]) if has_signatures else None
