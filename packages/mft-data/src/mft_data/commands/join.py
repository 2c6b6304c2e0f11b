"""Joins the parts of a build, made anywhere, into one dataset."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import orjson

from mft_data.dataset.plan_document import plan_difference
from mft_data.dataset.staging import CHUNKS, DATASET, PART, PLAN, begin
from mft_data.errors import DataError
from mft_data.execution.assemble import assemble_dataset
from mft_data.execution.chunk_store import finished_chunk, stored_chunks
from mft_data.execution.survey_sources import read_surveys
from mft_data.reading.records import MaxRejects, RejectLimit

if TYPE_CHECKING:
    from pathlib import Path

    from mft_data.dataset.output import Output
    from mft_data.reading.survey import FileSurvey


@dataclass(slots=True)
class Parts:
    """What the parts of a build hold together."""

    folders: dict[tuple[int, int], Path] = field(default_factory=dict)  # of each piece of a chunk, in order
    surveys: dict[tuple[int, int], FileSurvey] = field(default_factory=dict)
    limits: list[MaxRejects] = field(default_factory=list)


def join(part_dirs: list[Path], out: Output, is_overwrite: bool, max_rejects: MaxRejects | None) -> dict[str, Any]:
    """Makes the dataset `out` of all parts of one build and returns its manifest; raises DataError."""
    out.check(is_overwrite, part_dirs)
    parts = read_parts(part_dirs)
    check_rejects(parts, max_rejects)
    document = (part_dirs[0] / PLAN).read_bytes()
    with out.staging(is_resume=False, is_overwrite=is_overwrite) as staging:
        begin(staging, document)
        tokenizer_dir = part_dirs[0] / "tokenizer"
        manifest = assemble_dataset(staging / DATASET, document, parts.folders, parts.surveys, tokenizer_dir)
        out.publish(staging / DATASET, is_overwrite)
    return manifest


def read_parts(part_dirs: list[Path]) -> Parts:
    """What all parts of one build hold; raises DataError."""
    parts = Parts()
    by_number: dict[int, Path] = {}
    first: dict[str, Any] = {}
    for part_dir in part_dirs:
        try:
            part = orjson.loads((part_dir / PART).read_bytes())
            plan = (part_dir / PLAN).read_bytes()
            parts.surveys |= read_surveys(part_dir)
        except (FileNotFoundError, NotADirectoryError) as error:
            raise DataError(f'"{part_dir}" is not a finished part', fix="build it with --part I/N") from error
        first = first or {**part, "plan": plan, "path": part_dir}
        if plan != first["plan"] or part["num_parts"] != first["num_parts"]:
            raise DataError(
                f'"{part_dir}" and "{first["path"]}" are parts of different builds'
                + ("" if plan == first["plan"] else f" ({plan_difference(plan, first['plan'])} is another)"),
                fix="build all parts from the same files, with the same options and mft-data",
            )
        if part["left_out_sha256"] != first["left_out_sha256"]:
            what = f'"{part_dir}" and "{first["path"]}" found other conversations to be over a limit'
            raise DataError(what, fix="build all parts from the same files, which stay as they are")
        if part["part"] in by_number:
            raise DataError(f'"{part_dir}" and "{by_number[part["part"]]}" are both part {part["part"]}')
        by_number[part["part"]] = part_dir
        parts.limits.append(MaxRejects(**part["max_rejects"]))
        parts.folders |= stored_chunks(part_dir / CHUNKS)
    missing = sorted(set(range(1, first["num_parts"] + 1)) - by_number.keys())
    if missing:
        raise DataError(f"part {missing[0]} of {first['num_parts']} is missing", fix="give all parts")
    lost = sorted(set(range(first["num_chunks"])) - {index for index, _ in parts.folders})
    if lost:
        raise DataError(f"chunk {lost[0]} is missing from its part", fix="build that part anew")
    parts.folders = dict(sorted(parts.folders.items()))
    return parts


def check_rejects(parts: Parts, max_rejects: MaxRejects | None) -> None:
    """Raises DataError if the parts have left out more records than all of them together may."""
    if max_rejects is None:
        if len(set(parts.limits)) > 1:
            raise DataError("the parts were built with different --max-rejects", fix="give --max-rejects here")
        max_rejects = parts.limits[0]
    limit = RejectLimit(max_rejects)
    num_read = 0
    for folder in parts.folders.values():
        result = finished_chunk(folder)
        reason = result.first_refusal.reason if result.first_refusal else ""
        limit.add(result.counts.rejected, lambda: f"{reason}, in {folder}")  # noqa: B023
        num_read += result.counts.read
    limit.check_percent(num_read)
