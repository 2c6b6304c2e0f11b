"""The best model of every task, `best/TASK` of a run: which are kept, and their folders beside the checkpoints."""

from __future__ import annotations

import hashlib
import os
import re
import shutil
from typing import TYPE_CHECKING

import orjson

from mft_train.checkpoint.checkpoint import step_dir
from mft_train.checkpoint.publish import publish
from mft_train.checkpoint.validation_record import TASK

if TYPE_CHECKING:
    from collections.abc import Collection
    from pathlib import Path

    from mft_train.checkpoint.validation_record import Lowest, ValidationRecord
    from mft_train.config.config import RunConfig
    from mft_train.rows.dataset_dir import DatasetDir

RECORD, RECORD_VERSION = "best.json", "1"
# Share of the disk's free bytes that full models kept by `best_of_tasks: auto` may take.
DISK_SHARE = 0.5
MAX_NAME_BYTES = 200


def candidates(config: RunConfig, dataset: DatasetDir) -> list[str]:
    """The tasks whose best model the config asks for, in task order: trained and validated ones."""
    asked = config.best_of_tasks
    if asked is False:
        return []
    names = [task.name for task in dataset.trained_tasks if task.validation_rows]
    return [name for name in names if name in asked] if isinstance(asked, list) else names


def kept_tasks(config: RunConfig, dataset: DatasetDir, model_bytes: int, run_dir: Path) -> list[str]:
    """The tasks whose best model is kept.

    `auto` keeps all of them with an adapter, and full models of `model_bytes` each if all fit into half of the disk's
    free bytes.
    """
    names = candidates(config, dataset)
    if config.best_of_tasks != "auto" or config.method != "full":
        return names
    return names if len(names) * model_bytes <= DISK_SHARE * free_disk(run_dir) else []


def free_disk(run_dir: Path) -> int:
    """Bytes that are free for a run, with those that its best models take already."""
    held = {path.stat().st_ino: path.stat() for path in (run_dir / "best").rglob("*") if path.is_file()}
    # What a checkpoint holds too would not come free.
    own = sum(status.st_size for status in held.values() if status.st_nlink == 1)
    return shutil.disk_usage(run_dir).free + own


def folder_name(task: str) -> str:
    """The name of a task's folder: its own where that is plain, and another one for every task.

    Letters, digits, blanks and . _ + - stay; other characters are written as % and their bytes, and so is what the name
    of a folder must not begin or end with. `model` would be taken for the model of a checkpoint.
    """
    safe = re.sub(r"[^\w .+-]|^[. -]|[. ]$", lambda found: percent(found[0]), task)
    if safe in ("", "model"):
        safe = percent(task[:1]) + task[1:] if task else "%"
    if len(safe.encode()) > MAX_NAME_BYTES:
        cut = safe.encode()[: MAX_NAME_BYTES - 17].decode(errors="ignore")
        safe = f"{cut}%{hashlib.sha256(task.encode()).hexdigest()[:16]}"
    return safe


def percent(text: str) -> str:
    """Every byte of a text as % and two digits."""
    return "".join(f"%{byte:02X}" for byte in text.encode())


def keep_best_models(run_dir: Path, record: ValidationRecord, tasks: Collection[str]) -> None:
    """Lets `best/TASK` of each of these tasks be the model of its best checkpoint, if that is there.

    Files are linked, not copied, where the file system knows how.
    """
    for task in tasks:
        lowest = record.best_of(f"{TASK}{task}")
        target = run_dir / "best" / folder_name(task)
        if lowest and not is_kept(target, lowest):
            source = step_dir(run_dir, lowest.step) / "model"
            if source.is_dir():
                keep(source, target, task, lowest)


def is_kept(target: Path, lowest: Lowest) -> bool:
    """Whether a task's folder has the model of that step and loss."""
    try:
        document = orjson.loads((target / RECORD).read_bytes())
        return (document["global_step"], document["loss"]) == (lowest.step, lowest.value)
    except (OSError, orjson.JSONDecodeError, KeyError, TypeError):
        return False


def keep(source: Path, target: Path, task: str, lowest: Lowest) -> None:
    """Makes `target` the model in `source`, whole or not at all."""
    staging = target.with_name(f".{target.name}.partial")
    shutil.rmtree(staging, ignore_errors=True)
    staging.parent.mkdir(exist_ok=True)
    shutil.copytree(source, staging, copy_function=link)
    document = {
        "format_version": RECORD_VERSION,
        "task": task,
        "checkpoint": source.parent.name,
        "global_step": lowest.step,
        "loss": lowest.value,
    }
    (staging / RECORD).write_bytes(orjson.dumps(document, option=orjson.OPT_APPEND_NEWLINE))
    publish(staging, target)


def link(source: str, target: str) -> None:
    """A second name for a file, or a copy of it where that cannot be."""
    try:
        os.link(source, target)
    except OSError:
        shutil.copy2(source, target)
