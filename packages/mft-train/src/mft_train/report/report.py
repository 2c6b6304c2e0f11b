"""The report on a run, from its files alone: a table for the terminal, or one page that stands by itself."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from mft_train.config.whole_file import write_whole
from mft_train.errors import TrainError
from mft_train.report.page import page
from mft_train.report.provenance import read_manifest, read_run_config
from mft_train.report.run_log import read_run_log
from mft_train.report.task_figures import figures_table

if TYPE_CHECKING:
    from pathlib import Path


def text_report(run_dir: Path) -> str:
    """The figures of a run as a plain-text table; raises TrainError."""
    return figures_table(read_run_log(run_dir))


def html_report(run_dir: Path, version: str = "") -> bytes:
    """The page about a run, in UTF-8, one that is served if it has a version; raises TrainError."""
    log = read_run_log(run_dir)
    config = read_run_config(run_dir)
    return page(run_name(run_dir), log, config, read_manifest(str(config.get("dataset", ""))), version).encode()


def run_name(run_dir: Path) -> str:
    """The name of a run: that of its directory."""
    return os.fsencode(run_dir.resolve().name).decode(errors="replace")


def write_report(content: bytes, path: Path, *, is_overwrite: bool) -> None:
    """Writes a report: whole or not at all; raises TrainError."""
    if path.is_dir():
        raise TrainError(f'"{path}" is a folder', fix="name a file")
    if path.exists() and not is_overwrite:
        raise TrainError(f'"{path}" exists', fix="use --overwrite or another name")
    write_whole(content, path)
