"""How the base was quantised while the adapter was trained, as the run has recorded it beside the adapter."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mft_merge.errors import MergeError
from mft_merge.files.json_file import read_json
from mft_merge.files.tensor_file import FLOAT_TYPES

FILE_NAME = "quantization.json"
FORMAT_VERSION = "1"
TYPES = ("nf4", "fp4")
BLOCK_SIZES = (32, 64, 128, 256, 512, 1024, 2048, 4096)
LOAD_DTYPES = [name for name in FLOAT_TYPES.values() if name != "float64"]


@dataclass(frozen=True, slots=True)
class Quantization:
    """bitsandbytes' 4-bit quantisation: `kind` of the levels, numbers in a block, whether the blocks' scales are
    quantised, too, and torch's name of the type that the weights had when they were quantised.

    `modules` are the names of the live modules whose weights are quantised.
    """

    kind: str
    block_size: int
    is_double: bool
    load_dtype: str
    modules: tuple[str, ...]


def read_quantization(adapter_dir: Path) -> Quantization | None:
    """The quantisation recorded beside an adapter, or None where the base was not quantised."""
    path = adapter_dir / FILE_NAME
    if not path.is_file():
        return None
    document = read_json(path)
    if document.get("format_version") != FORMAT_VERSION:
        raise MergeError(f"format_version {document.get('format_version')!r} is not known", where=str(path))
    modules = document.get("modules")
    fits: dict[str, Any] = {
        "type": document.get("type") in TYPES,
        "block_size": document.get("block_size") in BLOCK_SIZES,
        "double_quantization": isinstance(document.get("double_quantization"), bool),
        "load_dtype": document.get("load_dtype") in LOAD_DTYPES,
        "modules": isinstance(modules, list) and all(isinstance(name, str) for name in modules),
    }
    wrong = [key for key, is_right in fits.items() if not is_right]
    if wrong:
        raise MergeError(f'"{wrong[0]}" is missing or not what it may be', where=str(path))
    return Quantization(
        document["type"],
        document["block_size"],
        document["double_quantization"],
        document["load_dtype"],
        tuple(document["modules"]),
    )
