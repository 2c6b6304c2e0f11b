"""The tokenizer in a finished dataset, opened without transformers."""

from __future__ import annotations

from typing import TYPE_CHECKING

from mft_data.errors import DataError

if TYPE_CHECKING:
    from pathlib import Path

    from tokenizers import Tokenizer


def open_tokenizer(tokenizer_dir: Path) -> Tokenizer:
    """The tokenizer in the folder of a dataset; raises DataError."""
    from tokenizers import Tokenizer

    path = tokenizer_dir / "tokenizer.json"
    try:
        return Tokenizer.from_file(str(path))
    # The tokenizers library raises a bare Exception for whatever is wrong with the file.
    except Exception as error:
        raise DataError(f"the tokenizer cannot be read ({error})", where=str(path)) from error
