"""The record of a merge: merge.json, which says what was done to each tensor, and the model card made of it."""

import hashlib
import importlib.metadata
from collections import Counter
from pathlib import Path
from typing import Any

from mft_merge.files.fingerprint import tensors_fingerprint
from mft_merge.files.json_file import read_json, write_json
from mft_merge.files.tensor_file import read_tensor_file
from mft_merge.planning.plan import MergePlan, OutputTensor
from mft_merge.sources.adapter import Adapter
from mft_merge.sources.base_model import BaseModel

RECORD_NAME = "merge.json"
CARD_NAME = "README.md"
FORMAT_VERSION = "1"


def make_record(
    adapters: list[tuple[Adapter, float]], base: BaseModel, dtype: str, base_weights: str
) -> dict[str, Any]:
    """What identifies a merge: its inputs by their fingerprints, and its settings."""
    first = adapters[0][0]
    record: dict[str, Any] = {
        "format_version": FORMAT_VERSION,
        "producer": f"mft-merge {importlib.metadata.version('mft-merge')}",
        "base": {
            "name": first.config.get("base_model_name_or_path"),
            "fingerprint": tensors_fingerprint(base.tensors.values()),
        },
        "adapters": [_adapter_entry(adapter, weight) for adapter, weight in adapters],
        "dtype": dtype,
        "base_weights": base_weights,
    }
    run = _run(first.adapter_dir)
    return record | ({"run": run} if run else {})


def _adapter_entry(adapter: Adapter, weight: float) -> dict[str, Any]:
    tensors = read_tensor_file(adapter.adapter_dir / "adapter_model.safetensors").tensors
    return {
        "fingerprint": tensors_fingerprint(tensors.values()),
        "config_sha256": _sha256(adapter.adapter_dir / "adapter_config.json"),
        "weight": weight,
    }


def write_record(
    record: dict[str, Any], plan: MergePlan, finished: dict[str, dict[str, Any]], out_dir: Path
) -> dict[str, Any]:
    """Write merge.json with every tensor that is not as it was; returns its content."""
    written = {name: found for shard in finished.values() for name, found in shard["tensors"].items()}
    tensors = {
        tensor.name: _entry(tensor, written[tensor.name])
        for tensor in sorted(plan.tensors(), key=lambda tensor: tensor.name)
        if not tensor.is_copy
    }
    replaced = {
        tensor.name: {"done": ["replaced"], "update_norm": None}
        for tensor in plan.tensors()
        if tensor.is_copy and tensor.source.name != tensor.name
    }
    copied = sum(tensor.is_copy and tensor.name not in replaced for tensor in plan.tensors())
    files = sorted({RECORD_NAME, CARD_NAME, *(path.relative_to(out_dir).as_posix() for path in _files(out_dir))})
    record = record | {
        "num_copied": copied,
        "tensors": dict(sorted((tensors | replaced).items())),
        "files": files,
    }
    write_json(out_dir / RECORD_NAME, record)
    return record


def foreign_file(out_dir: Path) -> str | None:
    """The first file in a directory that the merge.json in it does not name; None if there is none."""
    path = out_dir / RECORD_NAME
    named = read_json(path).get("files") if path.is_file() else None
    known = set(named) if isinstance(named, list) else set()
    found = (path.relative_to(out_dir).as_posix() for path in _files(out_dir))
    return next((name for name in sorted(found) if name not in known), None)


def _files(directory: Path) -> list[Path]:
    return [path for path in directory.rglob("*") if path.is_symlink() or not path.is_dir()]


def _entry(tensor: OutputTensor, written: dict[str, Any]) -> dict[str, Any]:
    entry = {"done": what_was_done(tensor), "update_norm": written["norm"]}
    return entry | ({"quantization_norm": written["quantization_norm"]} if tensor.quantization else {})


def quantization_shares(record: dict[str, Any]) -> dict[str, float]:
    """By the last name of the module: the norm of what quantisation changed over the norm of the update."""
    squares: dict[str, list[float]] = {}
    for name, entry in record["tensors"].items():
        if entry.get("quantization_norm") is not None and entry["update_norm"]:
            sums = squares.setdefault(name.split(".")[-2], [0.0, 0.0])
            sums[0] += entry["quantization_norm"] ** 2
            sums[1] += entry["update_norm"] ** 2
    return {kind: (changed / updated) ** 0.5 for kind, (changed, updated) in sorted(squares.items())}


def what_was_done(tensor: OutputTensor) -> list[str]:
    """The steps that make a tensor of the base the tensor of the merged model, in their order."""
    steps = {
        "replaced": tensor.source.name != tensor.name,
        "dequantized": tensor.is_dequantized,
        "updated": bool(tensor.products),
        "shifted": bool(tensor.shifts),
        "rows replaced": bool(tensor.rows),
        "converted": tensor.source.dtype != tensor.dtype,
    }
    return [step for step, is_done in steps.items() if is_done]


def write_card(record: dict[str, Any], out_dir: Path) -> None:
    """The model card: where the model comes from."""
    counts = Counter(", ".join(found["done"]) for found in record["tensors"].values())
    rows = [
        ("base model", f"`{record['base']['name']}`"),
        ("base fingerprint", f"`{record['base']['fingerprint']}`"),
        *((f"adapter, times {found['weight']:g}", f"`{found['fingerprint']}`") for found in record["adapters"]),
        *((key.replace("_", " "), f"`{value}`") for key, value in record.get("run", {}).items()),
        ("weights stored as", "the base's types" if record["dtype"] == "keep" else f"`{record['dtype']}`"),
        ("base weights", "as trained, given back from quantisation" if record["base_weights"] == "trained" else "full"),
        ("tensors as in the base", record["num_copied"]),
        *((f"tensors {steps}", count) for steps, count in sorted(counts.items())),
        ("made by", record["producer"]),
    ]
    name = record["base"]["name"] or ""
    front = f"---\nbase_model: {name}\nlibrary_name: transformers\n---\n" if name and not name.startswith("/") else ""
    lines = ["# A merged model", "", "An adapter, folded into its base model.", "", "| what | value |", "|---|---|"]
    lines += [f"| {what} | {value} |" for what, value in rows]
    (out_dir / CARD_NAME).write_text(front + "\n".join(lines) + "\n", encoding="utf-8")


def _run(adapter_dir: Path) -> dict[str, str]:
    """Fingerprints of the run that wrote the adapter and of its dataset, where they can be found."""
    found = {}
    # The adapter is run/final, run/best/TASK or run/checkpoints/step-.../model.
    for run_dir in list(adapter_dir.resolve().parents)[:3]:
        if (run_dir / "config.yaml").is_file() and (run_dir / "metrics.jsonl").is_file():
            found["run_config_sha256"] = _sha256(run_dir / "config.yaml")
            break
    document = adapter_dir / "base_model.json"
    if document.is_file() and isinstance(dataset := read_json(document).get("dataset_sha256"), str):
        found["dataset_sha256"] = dataset
    return found


def _sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()
