"""What made a generation: producer, model and settings, carried by every line so that each can be traced alone."""

import importlib.metadata
from typing import Any

from mft_infer.errors import InferError


def run_record(engine: str, model: str, fingerprint: str | None, settings: dict[str, Any]) -> dict[str, Any]:
    """The `run` of a line; `settings` are those that the text depends on."""
    producer = f"mft-infer {importlib.metadata.version('mft-infer')}"
    return {"producer": producer, "engine": engine, "model": model, "fingerprint": fingerprint, "settings": settings}


def check_same_run(found: Any, run: dict[str, Any], where: str) -> None:
    """Raises InferError that names the first thing in which a line's run differs from this one.

    A model may have moved: its fingerprint says which it is.
    """
    if not isinstance(found, dict) or not isinstance(found.get("settings"), dict):
        raise InferError("the line does not say what made it", where=where, fix="choose another OUT")
    pairs = [(name, found.get(name), run[name]) for name in ("producer", "engine", "fingerprint")]
    if run["fingerprint"] is None:
        pairs.append(("model", found.get("model"), run["model"]))
    names = sorted(found["settings"].keys() | run["settings"].keys())
    pairs += [(name, found["settings"].get(name), run["settings"].get(name)) for name in names]
    for name, before, now in pairs:
        if before != now:
            raise InferError(
                f"{name} was {_shown(before)} and is {_shown(now)} now",
                where=where,
                fix="resume with what it was, or choose another OUT",
            )


def _shown(value: Any) -> str:
    text = str(value)
    return text if len(text) <= 60 else f"{text[:60]}..."
