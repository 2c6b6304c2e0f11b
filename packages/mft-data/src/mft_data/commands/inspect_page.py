"""Writes what a dataset holds, what may be wrong with it, and some of its rows as one page."""

from __future__ import annotations

import os
import secrets
from typing import TYPE_CHECKING, Any

from mft_data.commands.audit_dataset import audit_dataset
from mft_data.commands.inspect_dataset import histogram_blocks, load_lengths, load_row
from mft_data.dataset.dataset_dir import read_manifest
from mft_data.display.audit_text import TITLES
from mft_data.display.page import page
from mft_data.errors import DataError

if TYPE_CHECKING:
    from pathlib import Path

    from mft_data.audit.findings import Audit

MOST_FIRST_ROWS = 12
MOST_ROWS_OF_A_CHECK = 5


def write_page(dataset_dir: Path, path: Path, *, is_overwrite: bool) -> None:
    """Writes the page, whole or not at all; raises DataError or OSError."""
    if path.exists() and not is_overwrite:
        raise DataError(f'"{path}" exists', fix="use --overwrite or another name")
    if not path.parent.is_dir():
        raise DataError(f'there is no folder "{path.parent}" for the page', fix="make it, or write somewhere else")
    manifest = read_manifest(dataset_dir)
    blocks = histogram_blocks(manifest, load_lengths(dataset_dir, manifest))
    audit = audit_dataset(dataset_dir, manifest)
    rows: list[dict[str, Any]] = [
        {**load_row(dataset_dir, task, split, row), "why": why}
        for (task, split, row), why in rows_to_show(manifest, audit).items()
    ]
    content = page(dataset_dir.resolve().name, manifest, blocks, audit, rows, MOST_FIRST_ROWS)
    # A name that nobody else has: what lies beside the page is not ours to touch.
    unfinished = path.with_name(f".{path.name}.{secrets.token_hex(8)}")
    handle = unfinished.open("x", encoding="utf-8")
    try:
        with handle:
            handle.write(content)
            handle.flush()
            os.fsync(handle.fileno())
        unfinished.replace(path)
    except BaseException:
        unfinished.unlink(missing_ok=True)
        raise


def rows_to_show(manifest: dict[str, Any], audit: Audit) -> dict[tuple[str, str, int], str]:
    """Task, split and number of the rows on the page, and what they are examples of."""
    rows = {(task["name"], "train", 0): "" for task in manifest["tasks"][:MOST_FIRST_ROWS]}
    for name, title in TITLES.items():
        findings = sorted(getattr(audit, name), key=lambda finding: -finding.count)
        places = [place for finding in findings for place in finding.examples][:MOST_ROWS_OF_A_CHECK]
        for place in places:
            key = place.task, place.split, place.row
            rows[key] = rows.get(key) or f"{title}: segment {place.segment}"
    return rows
