"""Where the base model lies: a directory here, or a model of the Hugging Face hub."""

import re
from pathlib import Path
from typing import Any

from mft_merge.errors import MergeError

# What a model directory is read for; other weight formats of the same repository stay where they are.
WANTED_FILES = ["*.json", "*.safetensors", "*.jinja", "*.model", "*.txt", "*.py"]


def base_location(base: str | None, adapter_config: dict[str, Any], adapter_dir: Path) -> Path:
    """The directory of `base`, or of the base that the adapter names; a hub id is downloaded or found in the cache."""
    named = adapter_config.get("base_model_name_or_path")
    name = base or named
    if not name:
        raise MergeError(
            "the adapter names no base model",
            where=str(adapter_dir / "adapter_config.json"),
            fix="name it with --base",
        )
    if Path(name).is_dir():
        return Path(name)
    if not re.fullmatch(r"[\w-][\w.-]*/[\w.-]+", name):
        if base:
            raise MergeError(f"there is no base model directory {name}", fix="name it with --base DIR")
        raise MergeError(
            f'the base model "{name}" that the adapter names is no directory here',
            where=str(adapter_dir / "adapter_config.json"),
            fix="name it with --base DIR",
        )
    return _from_hub(name, adapter_config.get("revision") if name == named else None)


def _from_hub(name: str, revision: str | None) -> Path:
    try:
        from huggingface_hub import snapshot_download
    except ImportError as error:
        raise MergeError(
            f'the base model "{name}" is no directory here',
            fix='name its directory with --base DIR, or install the hub\'s client: pip install "mft-merge[hub]"',
        ) from error
    try:
        return Path(snapshot_download(name, revision=revision, allow_patterns=WANTED_FILES))
    except Exception as error:  # the hub client raises many kinds, from its own and from those of its transport
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise MergeError(
            f'the base model "{name}" is no directory here and cannot be had from the hub: {reason}',
            fix="name its directory with --base DIR",
        ) from error
