"""How the base was quantised while the adapter was trained, as the run has recorded it beside the adapter."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from mft_merge.errors import MergeError
from mft_merge.files.json_file import read_json
from mft_merge.files.tensor_file import FLOAT_TYPES

FILE_NAME = "quantization.json"
FORMAT_VERSION = "1"
FOUR_BIT_TYPES, ROW_TYPE = ("nf4", "fp4"), "int8"
BLOCK_SIZES = (32, 64, 128, 256, 512, 1024, 2048, 4096)
LOAD_DTYPES = [name for name in FLOAT_TYPES.values() if name != "float64"]


@dataclass(frozen=True, slots=True)
class Quantization:
    """bitsandbytes' quantisation: `kind` of the levels, and torch's name of the type that the weights were loaded in.

    `modules` are the names of the live modules whose weights are quantised. In 4 bits there are also the numbers in a
    block, and whether the blocks' scales are quantised too; in 8 bits every row has a scale.
    """

    kind: str
    load_dtype: str
    modules: tuple[str, ...]
    block_size: int = 0
    is_double: bool = False


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
        "type": document.get("type") in (*FOUR_BIT_TYPES, ROW_TYPE),
        "load_dtype": document.get("load_dtype") in LOAD_DTYPES,
        "modules": isinstance(modules, list) and all(isinstance(name, str) for name in modules),
    }
    if document.get("type") != ROW_TYPE:
        fits |= {
            "block_size": document.get("block_size") in BLOCK_SIZES,
            "double_quantization": isinstance(document.get("double_quantization"), bool),
        }
    wrong = [key for key, is_right in fits.items() if not is_right]
    if wrong:
        raise MergeError(f'"{wrong[0]}" is missing or not what it may be', where=str(path))
    quantization = Quantization(document["type"], document["load_dtype"], tuple(document["modules"]))
    if quantization.kind == ROW_TYPE:
        return quantization
    return replace(quantization, block_size=document["block_size"], is_double=document["double_quantization"])
