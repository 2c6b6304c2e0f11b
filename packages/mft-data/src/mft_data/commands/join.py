"""Joins the parts of a build, made anywhere, into one dataset."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import orjson

from mft_data.dataset.staging import PART, PLAN, check_output, publish, staging_dir
from mft_data.errors import DataError
from mft_data.execution.assemble import assemble_dataset
from mft_data.execution.chunk_store import RESULT

if TYPE_CHECKING:
    from pathlib import Path


def join(part_dirs: list[Path], out: Path, is_overwrite: bool) -> dict[str, Any]:
    """Makes the dataset `out` of all parts of one build and returns its manifest; raises DataError."""
    check_output(out, is_overwrite, part_dirs)
    chunks_dirs = find_chunks(part_dirs)
    document = (part_dirs[0] / PLAN).read_bytes()
    with staging_dir(out, document, is_resume=False) as staging:
        manifest = assemble_dataset(staging / "dataset", document, chunks_dirs, part_dirs[0] / "tokenizer")
        publish(staging / "dataset", out)
    return manifest


def find_chunks(part_dirs: list[Path]) -> dict[int, Path]:
    """The folder of chunks that holds each chunk of the build, by chunk index; raises DataError."""
    parts: dict[int, Path] = {}
    chunks_dirs: dict[int, Path] = {}
    first: dict[str, Any] = {}
    for part_dir in part_dirs:
        try:
            part = orjson.loads((part_dir / PART).read_bytes())
            plan = (part_dir / PLAN).read_bytes()
        except FileNotFoundError as error:
            raise DataError(f'"{part_dir}" is not a finished part', fix="build it with --part I/N") from error
        first = first or {**part, "plan": plan, "path": part_dir}
        if plan != first["plan"] or part["num_parts"] != first["num_parts"]:
            raise DataError(
                f'"{part_dir}" and "{first["path"]}" are parts of different builds',
                fix="build all parts from the same files, with the same options and mft-data",
            )
        if part["part"] in parts:
            raise DataError(f'"{part_dir}" and "{parts[part["part"]]}" are both part {part["part"]}')
        parts[part["part"]] = part_dir
        chunks_dirs |= {int(path.parent.name): part_dir / "chunks" for path in part_dir.glob(f"chunks/*/{RESULT}")}
    missing = sorted(set(range(1, first["num_parts"] + 1)) - parts.keys())
    if missing:
        raise DataError(f"part {missing[0]} of {first['num_parts']} is missing", fix="give all parts")
    lost = sorted(set(range(first["num_chunks"])) - chunks_dirs.keys())
    if lost:
        raise DataError(f"chunk {lost[0]} is missing from its part", fix="build that part anew")
    return chunks_dirs
