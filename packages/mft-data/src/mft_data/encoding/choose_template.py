"""Which tokenizer and conversation template a build uses: one of ours, the tokenizer's own, or one from a file."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from mft_data.encoding.chat_template import chat_template
from mft_data.encoding.template import OWN_TEMPLATES
from mft_data.encoding.tokenizer import load_tokenizer, save_tokenizer
from mft_data.errors import DataError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from transformers import PreTrainedTokenizerBase

    from mft_data.encoding.template import Template


def load_tokenizer_and_template(
    tokenizer_dir: Path, choice: str, role_markers: Mapping[str, str], eos_token: str | None, scratch: Path
) -> tuple[PreTrainedTokenizerBase, Template]:
    """The tokenizer as every reader of a dataset loads it, and the template of this choice; raises DataError.

    It is saved to the folder `scratch` and loaded from there: some tokenizers are rebuilt at every load.
    """
    tokenizer = load_tokenizer(tokenizer_dir, eos_token)
    template = choose_template(choice, tokenizer, role_markers, eos_token)
    save_tokenizer(tokenizer, template.jinja(), scratch)
    return load_tokenizer(scratch, None), template


def choose_template(
    choice: str, tokenizer: PreTrainedTokenizerBase, role_markers: Mapping[str, str], eos_token: str | None
) -> Template:
    """The template `mft`, `mftcoder`, `tokenizer` or in the file of that path; raises DataError.

    Role markers are for the first two. If no `eos_token` was asked for, the tokenizer's becomes the one that ends
    the bot turns of a chat template: what comes later in the chain stops at a tokenizer's EOS.
    """
    if choice in OWN_TEMPLATES:
        return OWN_TEMPLATES[choice](tokenizer.eos_token, role_markers)
    if role_markers:
        raise click.UsageError("--role-marker goes with --template mft and mftcoder only")
    name, source = ("tokenizer", own_chat_template(tokenizer)) if choice == "tokenizer" else read_chat_template(choice)
    special_texts = [token.content for token in tokenizer.added_tokens_decoder.values() if token.special]
    template = chat_template(name, source, tokenizer.special_tokens_map, special_texts, tokenizer.eos_token)
    if eos_token is None and template.stop != tokenizer.eos_token:
        tokenizer.add_special_tokens({"eos_token": template.stop})
        template = chat_template(name, source, tokenizer.special_tokens_map, special_texts, tokenizer.eos_token)
    return template


def own_chat_template(tokenizer: PreTrainedTokenizerBase) -> str:
    """The tokenizer's chat template, the default one if it has several; raises DataError."""
    try:
        return tokenizer.get_chat_template()
    except ValueError as error:
        has_several = isinstance(tokenizer.chat_template, dict)
        what = "several chat templates and no default one" if has_several else "no chat template"
        raise DataError(
            f"the tokenizer has {what}", where=tokenizer.name_or_path, fix="give --template mft or a FILE.jinja"
        ) from error


def read_chat_template(path: str) -> tuple[str, str]:
    """Name and text of a chat template file; raises DataError or OSError."""
    try:
        return Path(path).name, Path(path).read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise DataError(
            f"the file is not UTF-8 ({error.reason})", where=path, fix="give a Jinja chat template"
        ) from error
