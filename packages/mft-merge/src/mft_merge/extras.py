"""The libraries that only some merges need, each by the name of the extra that brings it."""

import importlib.util

from mft_merge.errors import MergeError


def check_peft(option: str) -> None:
    """Raise where the libraries that `option` runs are not installed: PEFT, and transformers with it."""
    if any(importlib.util.find_spec(name) is None for name in ("peft", "transformers")):
        raise MergeError(
            f"{option} needs PEFT and transformers", fix='install them with: pip install "mft-merge[verify]"'
        )
