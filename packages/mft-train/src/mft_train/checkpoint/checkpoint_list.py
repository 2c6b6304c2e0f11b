"""The checkpoints of a run directory: which can be resumed, which is the best, which are kept."""

from __future__ import annotations

import shutil
from typing import TYPE_CHECKING

import orjson

from mft_train.checkpoint.checkpoint import FORMAT_VERSION, step_dir
from mft_train.checkpoint.publish import discard
from mft_train.checkpoint.validation_record import described
from mft_train.errors import TrainError

if TYPE_CHECKING:
    from pathlib import Path

    from mft_train.checkpoint.validation_record import ValidationRecord

BEST_VERSION = "1"  # of best.json


def latest_checkpoint(run_dir: Path) -> tuple[Path | None, list[tuple[Path, str]]]:
    """The whole checkpoint with the most steps, if there is one, and the later ones that are damaged, with the reason.

    Raises TrainError if there are checkpoints but none is whole.
    """
    damaged = []
    for path in sorted((run_dir / "checkpoints").glob("step-*"), reverse=True):
        reason = damage(path)
        if reason is None:
            return path, damaged
        damaged.append((path, reason))
    if damaged:
        path, reason = damaged[0]
        raise TrainError(f"no checkpoint is whole: {reason}", where=str(path), fix="start again with --overwrite")
    return None, []


def damage(path: Path) -> str | None:
    """What is wrong with a checkpoint, None if every file is there with the size that it was written with."""
    try:
        document = orjson.loads((path / "state" / "run.json").read_bytes())
        version, files = document["format_version"], document["files"]
        if version != FORMAT_VERSION:
            raise TrainError(f"format_version {version} is not {FORMAT_VERSION}", where=str(path))
        for name, size in files.items():
            if not (path / name).is_file():
                return f"{name} is missing"
            if (path / name).stat().st_size != size:
                return f"{name} has {(path / name).stat().st_size} bytes, {size} were written"
    except FileNotFoundError:
        return "state/run.json is missing"
    except (orjson.JSONDecodeError, KeyError, TypeError, AttributeError, NotADirectoryError):
        return "state/run.json is damaged"
    return None


def retain(run_dir: Path, record: ValidationRecord, global_step: int, keep_last: int) -> None:
    """Names the best checkpoint in best.json and deletes all but it and the `keep_last` latest; 0 deletes none.

    Those that wait for their evaluation are kept too. Checkpoints of steps after `global_step` are left from before a
    resume: they are neither counted nor deleted.
    """
    directory = run_dir / "checkpoints"
    lowest = record.best
    best = step_dir(run_dir, lowest.step) if lowest else None
    best_path = directory / "best.json"
    if lowest is None or best is None or not best.is_dir():
        best_path.unlink(missing_ok=True)
    else:
        document = {
            "format_version": BEST_VERSION,
            "checkpoint": best.name,
            "global_step": lowest.step,
            **described(record.rule, lowest.value),
        }
        staging = directory / ".best.json.partial"
        staging.write_bytes(orjson.dumps(document) + b"\n")
        staging.replace(best_path)
    if keep_last == 0:
        return
    kept = {best, *(step_dir(run_dir, step) for step in record.unevaluated)}
    current = step_dir(run_dir, global_step).name
    for path in sorted(path for path in directory.glob("step-*") if path.name <= current)[:-keep_last]:
        if path not in kept:
            discard(path)


def clear(run_dir: Path) -> None:
    """Deletes everything in a run directory, but not the directory, which is locked.

    The config goes last: until then the directory can be told from one that is no run.
    """
    for path in sorted(run_dir.iterdir(), key=lambda path: path.name == "config.yaml"):
        delete(path)


def remove_unfinished(run_dir: Path) -> None:
    """Deletes what a killed run was writing or deleting: everything with a dot before its name."""
    for path in [
        *run_dir.glob(".*.partial"),
        *run_dir.glob(".*.deleted"),
        *(run_dir / "checkpoints").glob(".*.*"),
        *(run_dir / "best").glob(".*.*"),
        *(run_dir / "evaluations").glob(".*.*"),
    ]:
        delete(path)


def delete(path: Path) -> None:
    """Deletes a file, or a directory with all that it holds."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink()
