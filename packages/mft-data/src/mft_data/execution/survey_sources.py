"""What the files of a build hold, found out before any chunk is encoded, and kept beside the chunks of a part."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING

import orjson

from mft_data.dataset.staging import FILES
from mft_data.reading.chunks import file_starts
from mft_data.reading.survey import FileSurvey, survey_file

if TYPE_CHECKING:
    from pathlib import Path

    from mft_data.execution.engines import Engine
    from mft_data.execution.read_chunk import Work
    from mft_data.reading.chunks import Chunk

    Surveys = dict[tuple[int, int], FileSurvey]


def survey_sources(work: Work, all_chunks: list[Chunk], chunks: list[Chunk], engine: Engine) -> Surveys:
    """The survey of each uncompressed file that begins in one of `chunks`, by the positions of its source and its own.

    `all_chunks` are those of the whole build, of which `chunks` may be a part. Raises DataError if a file has changed.
    """
    begun = {(chunk.task, span.file) for chunk in chunks for span in chunk.spans if span.start == 0}
    starts = {key: found for key, found in file_starts(all_chunks).items() if key in begun}
    jobs = ((survey_job, *key, starts[key]) for key in starts)
    return dict(zip(starts, engine.run(work, jobs), strict=True))


def survey_job(work: Work, position: int, number: int, starts: list[int]) -> FileSurvey:
    """Surveys one file in a worker."""
    file = work.sources[position].files[number]
    return survey_file(file.path, file.size_bytes, starts)


def write_surveys(folder: Path, surveys: Surveys) -> None:
    """Writes down the surveys of a part of a build."""
    entries = [[position, number, asdict(survey)] for (position, number), survey in sorted(surveys.items())]
    (folder / FILES).write_bytes(orjson.dumps(entries))


def read_surveys(folder: Path) -> Surveys:
    """The surveys of a part of a build; raises OSError."""
    entries = orjson.loads((folder / FILES).read_bytes())
    return {(position, number): FileSurvey(**survey) for position, number, survey in entries}
