"""Builds a dataset directory, or one part of it, from task sources."""

from __future__ import annotations

import gc
import shutil
from collections import deque
from contextlib import closing
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any

import orjson

from mft_data.dataset.output import FolderOutput
from mft_data.dataset.staging import CHUNKS, DATASET, LOCK, PART, SCRATCH, begin
from mft_data.encoding.encoder import make_encoder
from mft_data.encoding.tokenizer import save_tokenizer
from mft_data.errors import DataError
from mft_data.execution.assemble import assemble_dataset
from mft_data.execution.chunk_store import (
    changed_path,
    finish_chunk,
    remove_unfinished,
    stored_chunks,
    write_num_pieces,
)
from mft_data.execution.engines import started_engine
from mft_data.execution.find_left_out import find_left_out, left_out_sha256
from mft_data.execution.plan import all_sources, make_plan, usable_cores
from mft_data.execution.progress import show_progress
from mft_data.execution.read_chunk import place_of
from mft_data.execution.survey_sources import survey_sources, write_surveys
from mft_data.reading.chunks import chunk_bytes, part_of, plan_chunks
from mft_data.reading.fetched import Fetched
from mft_data.reading.records import RejectLimit
from mft_data.reading.sources import SUFFIXES
from mft_data.reading.streamed import Streamed
from mft_data.reading.survey import changed_file

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from mft_data.dataset.output import Output
    from mft_data.encoding.encoder import Encoder
    from mft_data.execution.chunk_result import ChunkResult
    from mft_data.execution.engines import Engine
    from mft_data.execution.find_left_out import LeftOut
    from mft_data.execution.plan import BuildOptions, Plan
    from mft_data.execution.read_chunk import Work
    from mft_data.reading.chunks import Chunk
    from mft_data.reading.records import MaxRejects
    from mft_data.reading.sources import Source
    from mft_data.reading.survey import FileSurvey

    Surveys = dict[tuple[int, int], FileSurvey]
    AllLeftOut = dict[tuple[int, int], LeftOut]


@dataclass(frozen=True, slots=True)
class RunOptions:
    """How a build is carried out, which changes nothing of what is built."""

    num_workers: int | None = None
    engine: str = "processes"
    is_overwrite: bool = False
    is_resume: bool = False
    part: tuple[int, int] | None = None


def build(source_arguments: list[str], out: Output, options: BuildOptions, run: RunOptions) -> dict[str, Any] | None:
    """Builds the dataset `out` and returns its manifest, or builds a part and returns None; raises DataError."""
    with Fetched(SUFFIXES) as fetched:
        return build_from(all_sources(source_arguments, options, fetched), out, options, run)


def build_from(sources: list[Source], out: Output, options: BuildOptions, run: RunOptions) -> dict[str, Any] | None:
    """Builds a dataset, or a part of it, from sources that are found; see `build`."""
    if run.part:
        check_part(options, out)
    out.check(run.is_overwrite, [path for source in sources for path in source.paths])
    all_chunks = plan_chunks(sources, options.seq_length)
    chunks = part_of(all_chunks, *run.part) if run.part else all_chunks
    num_workers = run.num_workers or usable_cores()
    if not any(chunk.is_streamed for chunk in chunks):
        num_workers = min(num_workers, len(chunks))
    # Worker processes load their libraries while this one loads the tokenizer with transformers.
    with (
        out.staging(run.is_resume, run.is_overwrite) as staging,
        started_engine(run.engine, num_workers, staging / SCRATCH) as engine,
    ):
        plan = make_plan(sources, options, staging / SCRATCH / "tokenizer")
        encoder = make_encoder(plan.tokenizer_config, plan.template)  # with checks, before any worker relies on it
        for source in sources:
            encoder.renderer(source.settings)
        begin(staging, plan.document)
        if not (staging / "tokenizer").is_dir():
            save_tokenizer(plan.tokenizer, plan.template.jinja(), staging / SCRATCH / "saved")
            (staging / SCRATCH / "saved").rename(staging / "tokenizer")  # whole or not at all
        remove_unfinished(staging / CHUNKS)
        surveys = survey_sources(plan.work, all_chunks, chunks, engine)
        scanned = chunks_to_scan(plan, all_chunks)
        left_out: AllLeftOut = {}
        if scanned:
            left_out = find_left_out(plan.work, encoder, all_pieces(plan.work, scanned, {}), engine, plan.dedup)
        run_chunks(plan, encoder, chunks, staging / CHUNKS, engine, surveys, left_out, is_part=bool(run.part))
        if run.part:
            write_surveys(staging, surveys)
            content = part_document(run.part, len(all_chunks), plan.max_rejects, left_out)
            publish_part(staging, content, out, run.is_overwrite)
            return None
        folders = stored_chunks(staging / CHUNKS)
        manifest = assemble_dataset(staging / DATASET, plan.document, folders, surveys, staging / "tokenizer")
        out.publish(staging / DATASET, run.is_overwrite)
    return manifest


def check_part(options: BuildOptions, out: Output) -> None:
    """Raises DataError for what cannot be built in parts."""
    if options.dedup != "none":
        raise DataError("--dedup needs the whole input", fix="build without --part, or deduplicate first")
    if not isinstance(out, FolderOutput):
        raise DataError("a part needs a folder", fix="write parts where all machines see them, and join to a store")


def chunks_to_scan(plan: Plan, all_chunks: list[Chunk]) -> list[Chunk]:
    """The chunks of a whole build that decide what is left out of it: all, or those of tasks with a limit.

    A part, too, has to see all of them.
    """
    if plan.dedup != "none":
        return all_chunks
    return [chunk for chunk in all_chunks if plan.work.sources[chunk.task].settings.limit is not None]


def part_document(part: tuple[int, int], num_chunks: int, max_rejects: MaxRejects, left_out: AllLeftOut) -> bytes:
    """The file part.json."""
    content = {
        "part": part[0],
        "num_parts": part[1],
        "num_chunks": num_chunks,
        "max_rejects": asdict(max_rejects),
        "left_out_sha256": left_out_sha256(left_out),
    }
    return orjson.dumps(content)


def publish_part(staging: Path, content: bytes, out: Output, is_overwrite: bool) -> None:
    """Makes the finished work itself the output; `content` is that of its part.json."""
    (staging / PART).write_bytes(content)
    (staging / LOCK).unlink()
    shutil.rmtree(staging / SCRATCH)
    out.publish(staging, is_overwrite)


def run_chunks(
    plan: Plan,
    encoder: Encoder,
    chunks: list[Chunk],
    chunks_dir: Path,
    engine: Engine,
    surveys: Surveys,
    left_out: AllLeftOut,
    *,
    is_part: bool,
) -> None:
    """Finishes `chunks`, all or some of a build's; adds to `surveys` what is found in compressed files.

    Raises DataError for the first error in the order of the input.
    """
    is_counted = not is_part and not any(chunk.is_streamed for chunk in chunks)
    num_lines = sum(survey.num_lines for survey in surveys.values()) if is_counted else None
    limit = RejectLimit(plan.max_rejects, num_lines)
    sent: deque[Chunk] = deque()

    def jobs() -> Iterator[tuple[Any, ...]]:
        for piece in all_pieces(plan.work, chunks, surveys, chunks_dir):
            # Of what was sent, the lines need not be kept.
            sent.append(replace(piece, spans=tuple(replace(span, content=b"") for span in piece.spans)))
            yield encode_job, piece, left_out.get(piece.key)

    num_read = 0
    with (
        closing(engine.run((plan.work, encoder, chunks_dir), jobs())) as results,
        show_progress(sum(chunk.num_bytes for chunk in chunks)) as advance,
    ):
        for result in results:
            piece = sent.popleft()
            limit.add(result.counts.rejected, lambda: first_refusal(plan.work, piece, result))  # noqa: B023
            num_read += result.counts.read
            advance(piece.num_bytes, result.num_tokens)
    if not is_part:
        limit.check_percent(num_read)


def all_pieces(work: Work, chunks: list[Chunk], surveys: Surveys, chunks_dir: Path | None = None) -> Iterator[Chunk]:
    """The chunks in order, streamed ones in pieces; puts what it finds in the files of these into `surveys`."""
    for chunk in chunks:
        if not chunk.is_streamed:
            yield chunk
            continue
        streamed = Streamed(work.sources[chunk.task], chunk, chunk_bytes(work.seq_length))
        yield from streamed
        surveys |= {(chunk.task, file): survey for file, survey in streamed.surveys.items()}
        if chunks_dir is not None:
            write_num_pieces(chunks_dir, chunk.index, streamed.num_pieces)


def first_refusal(work: Work, chunk: Chunk, result: ChunkResult) -> str:
    """The first refused record of a chunk in words."""
    refusal = result.first_refusal
    return f"{refusal.reason}, in {place_of(work, chunk, refusal.span, refusal.line)}" if refusal else ""


def encode_job(state: tuple[Work, Encoder, Path], chunk: Chunk, left_out: LeftOut | None) -> ChunkResult:
    """Finishes one chunk in a worker; raises DataError if what is `left_out` was found in other lines than it read."""
    work, encoder, chunks_dir = state
    gc.disable()  # a chunk makes many objects and no cycles: collecting costs a twentieth of the time
    try:
        result = finish_chunk(work, encoder, chunk, left_out.flags if left_out else None, chunks_dir)
    finally:
        gc.enable()
    now = [span.digest for span in result.spans]
    if left_out and left_out.line_digests != now:
        raise changed_file(changed_path(work, chunk, left_out.line_digests, now))
    return result
