"""What tells two base models apart: the contents of their files, or their commit on the hub."""

from __future__ import annotations

import hashlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import orjson

from mft_train.errors import TrainError

NUM_READERS = 8
# In the order in which transformers looks for them: one file, or the index of several.
WEIGHTS = ("model.safetensors", "model.safetensors.index.json", "pytorch_model.bin", "pytorch_model.bin.index.json")


def base_identity(model: str) -> str:
    """What tells a base model from every other, wherever it lies: of a directory by contents, of a hub id by commit.

    A directory's is a hash over the names and contents of config.json and every weight file. Raises TrainError if a
    file is missing, or OSError if the hub has no such model.
    """
    directory = Path(model)
    if not directory.is_dir():
        from transformers.utils import cached_file

        path = Path(str(cached_file(model, "config.json")))  # .../snapshots/COMMIT/config.json
        return f"{model} at commit {path.parent.name}"
    names = ["config.json", *weight_names(directory)]
    try:
        with ThreadPoolExecutor(NUM_READERS) as pool:  # hashing releases the interpreter
            digests = list(pool.map(file_sha256, [directory / name for name in names]))
    except FileNotFoundError as error:
        raise TrainError(f'the model has no "{Path(error.filename).name}"', where=model) from error
    lines = (f"{digest}  {name}\n" for digest, name in zip(digests, names, strict=True))
    return f"sha256 {hashlib.sha256(''.join(lines).encode()).hexdigest()}"


def weight_names(directory: Path) -> list[str]:
    """The names of the files that hold the weights, sorted; raises TrainError if there are none."""
    for name in WEIGHTS:
        path = directory / name
        if path.is_file():
            return (
                sorted(set(orjson.loads(path.read_bytes())["weight_map"].values())) if name.endswith("json") else [name]
            )
    raise TrainError("the model has no weights", where=str(directory), fix=f"it needs {WEIGHTS[0]}, or {WEIGHTS[1]}")


def file_sha256(path: Path) -> str:
    """Hex digest of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
