"""The directory that a name stands for: a model, an adapter, a run of mft-train or something in one."""

from dataclasses import dataclass
from pathlib import Path

import orjson

from mft_infer.errors import InferError

MODEL_CONFIG, ADAPTER_CONFIG = "config.json", "adapter_config.json"


@dataclass(frozen=True, slots=True)
class ModelSource:
    """A model's directory or hub id, and an adapter's directory if there is one over it."""

    model: str
    adapter: Path | None


def find_model(name: str, base: str | None) -> ModelSource:
    """The model, and adapter, that `name` stands for; `base` stands in for the base that an adapter names."""
    directory = _model_dir(Path(name))
    if directory is None or not (directory / ADAPTER_CONFIG).is_file():
        if base is not None:
            raise InferError(f"{name} is no adapter, so it has no base", fix="leave out --base")
        model = str(directory) if directory is not None else name
        _check(model)
        return ModelSource(model, None)
    model = base or _named_base(directory)
    try:
        _check(model)
    except InferError as error:
        if base is not None:
            raise
        raise InferError(f"of the base: {error.message}", where=str(directory), fix="name it with --base") from error
    return ModelSource(model, directory)


def _model_dir(path: Path) -> Path | None:
    """Where the files of a model or adapter lie: there, in a checkpoint's `model` or in the `final` of a run."""
    for candidate in (path, path / "model"):
        if (candidate / MODEL_CONFIG).is_file() or (candidate / ADAPTER_CONFIG).is_file():
            return candidate
    if (path / "metrics.jsonl").is_file():
        if not (path / "final").is_dir():
            raise InferError("the run has no final model yet", where=str(path), fix=f"name {_latest(path)}")
        return path / "final"
    if path.name == "best" and (path.parent / "checkpoints" / "best.json").is_file():
        return _best(path.parent / "checkpoints")
    if path.parent.name == "best" and path.parent.is_dir() and not path.exists():
        tasks = sorted(entry.name for entry in path.parent.iterdir() if not entry.name.startswith("."))
        raise InferError(
            f'the run has no best model of task "{path.name}"',
            where=str(path.parent),
            fix=f"name one of {', '.join(tasks)}" if tasks else None,
        )
    if (path.parent / "metrics.jsonl").is_file() and not path.exists():
        raise InferError(f"the run has no {path.name}", where=str(path.parent), fix=f"name {_latest(path.parent)}")
    return None


def _latest(run_dir: Path) -> str:
    steps = sorted((run_dir / "checkpoints").glob("step-*"))
    return str(steps[-1]) if steps else "a run that has ended"


def _best(checkpoints: Path) -> Path:
    """The model of the checkpoint that the run has named the best."""
    path = checkpoints / "best.json"
    try:
        record = orjson.loads(path.read_bytes())
        version, name = record["format_version"], str(record["checkpoint"])
    except (orjson.JSONDecodeError, KeyError, TypeError) as error:
        raise InferError("the file names no checkpoint", where=str(path)) from error
    if version != "1":
        raise InferError(f"format_version {version} is unknown", where=str(path), fix="use a newer mft-infer")
    return checkpoints / name / "model"


def _named_base(adapter_dir: Path) -> str:
    path = adapter_dir / ADAPTER_CONFIG
    try:
        config = orjson.loads(path.read_bytes())
    except orjson.JSONDecodeError as error:
        raise InferError(f"invalid JSON ({error.msg})", where=str(path)) from error
    name = config.get("base_model_name_or_path") if isinstance(config, dict) else None
    if not isinstance(name, str) or not name:
        raise InferError("the adapter names no base model", where=str(path), fix="name it with --base")
    return name


def _check(name: str) -> None:
    path = Path(name)
    if path.is_dir():
        if not (path / MODEL_CONFIG).is_file():
            raise InferError(f"{name} is no model directory: it has neither config.json nor adapter_config.json")
    elif path.exists():
        raise InferError(f"{name} is a file, not a model directory")
    elif path.is_absolute() or name.startswith(".") or [bool(part) for part in name.split("/")] != [True, True]:
        # A hub id that people share is owner/name.
        raise InferError(f"there is no model directory {name}")
