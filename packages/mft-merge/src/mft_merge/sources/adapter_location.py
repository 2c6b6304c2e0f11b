"""The adapter directory that a path stands for: itself, or something in a run of mft-train."""

from pathlib import Path

from mft_merge.errors import MergeError
from mft_merge.files.json_file import read_json

CONFIG_NAME = "adapter_config.json"


def find_adapter(path: Path) -> Path:
    """The adapter at `path`: itself, of a run its result or best, of a checkpoint its model, of a task its best."""
    candidates = (path, path / "model", path / "final")
    if found := next((found for found in candidates if (found / CONFIG_NAME).is_file()), None):
        return found
    best = path.parent / "checkpoints" / "best.json"
    if path.name == "best" and best.is_file():
        return _best(best)
    if (path / "metrics.jsonl").is_file() and not (path / "final").is_dir():
        steps = sorted((path / "checkpoints").glob("step-*"))
        fix = f"name {steps[-1]}" if steps else None
        raise MergeError("the run has no final model yet", where=str(path), fix=fix)
    if path.parent.name == "best" and path.parent.is_dir() and not path.exists():
        names = sorted(entry.name for entry in path.parent.iterdir() if not entry.name.startswith("."))
        fix = f"name one of {', '.join(names)}" if names else None
        raise MergeError(f'the run has no best model of "{path.name}"', where=str(path.parent), fix=fix)
    if not path.is_dir():
        raise MergeError(f"there is no adapter directory {path}")
    return next((found for found in candidates if (found / "config.json").is_file()), path)


def _best(record_path: Path) -> Path:
    """The model of the checkpoint with the lowest validation loss."""
    record = read_json(record_path)
    if record.get("format_version") != "1":
        raise MergeError(f"format_version {record.get('format_version')!r} is not known", where=str(record_path))
    if not isinstance(record.get("checkpoint"), str):
        raise MergeError("the file names no checkpoint", where=str(record_path))
    return record_path.parent / record["checkpoint"] / "model"
