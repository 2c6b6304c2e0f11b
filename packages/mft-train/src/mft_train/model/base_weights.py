"""What tells two base models apart: the contents of their files, or their commit on the hub."""

from __future__ import annotations

import hashlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import orjson

from mft_train.errors import TrainError
from mft_train.rows.remote import file_sha256

NUM_READERS = 8
SAMPLE_BYTES = 4096
# In the order in which transformers looks for them: one file, or the index of several.
WEIGHTS = ("model.safetensors", "model.safetensors.index.json", "pytorch_model.bin", "pytorch_model.bin.index.json")
# Types of weights, as safetensors files name them.
STORED_TYPES = {"F32": "float32", "BF16": "bfloat16", "F16": "float16"}


def base_identity(model: str) -> str:
    """What tells a base model from every other, wherever it lies: of a directory by contents, of a hub id by commit.

    A directory's is a hash over the names and contents of config.json, every weight file and Python code beside them.
    Raises TrainError if a file is missing, or OSError if the hub has no such model.
    """
    directory = Path(model)
    if not directory.is_dir():
        from transformers.utils import cached_file

        path = Path(str(cached_file(model, "config.json")))  # .../snapshots/COMMIT/config.json
        return f"{model} at commit {path.parent.name}"
    names = ["config.json", *weight_names(directory), *sorted(path.name for path in directory.glob("*.py"))]
    try:
        with ThreadPoolExecutor(NUM_READERS) as pool:  # hashing releases the interpreter
            digests = list(pool.map(file_sha256, [directory / name for name in names]))
    except FileNotFoundError as error:
        raise TrainError(f'the model has no "{Path(error.filename).name}"', where=model) from error
    lines = (f"{digest}  {name}\n" for digest, name in zip(digests, names, strict=True))
    return f"sha256 {hashlib.sha256(''.join(lines).encode()).hexdigest()}"


def model_dir(model: str) -> Path:
    """The local directory of a model that has been loaded: itself, or where the hub's client keeps it."""
    if Path(model).is_dir():
        return Path(model)
    from transformers.utils import cached_file

    return Path(str(cached_file(model, "config.json"))).parent


def tensors_fingerprint(directory: Path) -> str | None:
    """The sha256 over all tensors of a model in the order of their names, None if they are not in safetensors files.

    Of each the line `["name","dtype",[shape]]` as JSON without spaces and a newline, then the first 4,096 bytes of its
    payload, or all if fewer. It is what mft-merge compares the base with.
    """
    tensors = model_tensors(directory)
    if tensors is None:
        return None
    digest = hashlib.sha256()
    for name, dtype, shape, path, offset, size in sorted(tensors):
        digest.update(orjson.dumps([name, dtype, shape]) + b"\n")
        with path.open("rb") as file:
            file.seek(offset)
            digest.update(file.read(min(SAMPLE_BYTES, size)))
    return digest.hexdigest()


def model_tensors(directory: Path) -> list[tuple[str, str, list[int], Path, int, int]] | None:
    """The tensors in all files of a model, None if those are not safetensors; raises TrainError if there are none."""
    names = weight_names(directory)
    if not all(name.endswith(".safetensors") for name in names):
        return None
    return [tensor for name in names for tensor in stored_tensors(directory / name)]


def stored_tensors(path: Path) -> list[tuple[str, str, list[int], Path, int, int]]:
    """Name, type, shape, file, offset and bytes of every tensor in a safetensors file."""
    with path.open("rb") as file:
        header_size = int.from_bytes(file.read(8), "little")
        header = orjson.loads(file.read(header_size))
    header.pop("__metadata__", None)
    found = []
    for name, entry in header.items():
        start, stop = entry["data_offsets"]
        found.append((name, entry["dtype"], entry["shape"], path, 8 + header_size + start, stop - start))
    return found


def stored_weights(model: str) -> tuple[str | None, int]:
    """The type of a model's stored weights, None if it is unknown or not one, and the bytes that its files can map.

    A model on the hub, or without safetensors files, is not looked into.
    """
    if not Path(model).is_dir():
        return None, 0
    try:
        tensors = model_tensors(Path(model))
    except TrainError:
        return None, 0
    if tensors is None:
        return None, 0
    types = {dtype for _, dtype, *_ in tensors}
    only = STORED_TYPES.get(types.pop()) if len(types) == 1 else None
    return only, sum(size for *_, size in tensors)


def weight_names(directory: Path) -> list[str]:
    """The names of the files that hold the weights, sorted; raises TrainError if there are none."""
    for name in WEIGHTS:
        path = directory / name
        if path.is_file():
            return (
                sorted(set(orjson.loads(path.read_bytes())["weight_map"].values())) if name.endswith("json") else [name]
            )
    raise TrainError("the model has no weights", where=str(directory), fix=f"it needs {WEIGHTS[0]}, or {WEIGHTS[1]}")
