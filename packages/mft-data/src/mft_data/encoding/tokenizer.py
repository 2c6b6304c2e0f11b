"""The tokenizer directory: loading one, with transformers or without, choosing its stop token, saving it."""

from __future__ import annotations

import hashlib
import json
from difflib import get_close_matches
from typing import TYPE_CHECKING, Any

import orjson

from mft_data.errors import DataError

if TYPE_CHECKING:
    from pathlib import Path

    from tokenizers import Tokenizer
    from transformers import PreTrainedTokenizerBase


def load_tokenizer(tokenizer_dir: Path, eos_token: str | None) -> PreTrainedTokenizerBase:
    """The fast tokenizer in a directory, its `eos_token` set to the one given, if any; raises DataError."""
    from transformers.utils import logging

    logging.set_verbosity_error()
    try:
        loader = tokenizer_loader(tokenizer_dir)
        tokenizer = loader.from_pretrained(str(tokenizer_dir), local_files_only=True, trust_remote_code=False)
    # The loader raises whatever its many parsers raise, a bare Exception among them.
    except Exception as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(" :")
        fix = "give a folder with a tokenizer.json"
        raise DataError(f"no tokenizer can be loaded ({reason})", where=str(tokenizer_dir), fix=fix) from error
    if not tokenizer.is_fast:
        raise DataError(
            "the tokenizer has no fast version", where=str(tokenizer_dir), fix="convert it to a tokenizer.json"
        )
    set_eos_token(tokenizer, eos_token, tokenizer_dir)
    return tokenizer


def tokenizer_loader(tokenizer_dir: Path) -> Any:
    """What loads the tokenizer: the class that takes tokenizer.json as it is, where it says so, else AutoTokenizer.

    AutoTokenizer would come to the same class, but not before it has imported torch.
    """
    config_path = tokenizer_dir / "tokenizer_config.json"
    config = json.loads(config_path.read_text(encoding="utf-8")) if config_path.is_file() else {}
    if config.get("tokenizer_class") in ("PreTrainedTokenizerFast", "TokenizersBackend"):
        from transformers import PreTrainedTokenizerFast

        return PreTrainedTokenizerFast
    from transformers import AutoTokenizer

    return AutoTokenizer


def set_eos_token(tokenizer: PreTrainedTokenizerBase, eos_token: str | None, tokenizer_dir: Path) -> None:
    """Makes `eos_token`, a token of the vocabulary, the stop token; without one checks that there is one already."""
    if eos_token is None:
        if tokenizer.eos_token is None:
            raise DataError("the tokenizer has no EOS token", where=str(tokenizer_dir), fix="give --eos-token")
        return
    vocab = tokenizer.get_vocab()
    if eos_token not in vocab:
        near = get_close_matches(eos_token, tokenizer.get_added_vocab(), n=3, cutoff=0.4)
        fix = f"use one like {', '.join(near)}" if near else "use a token of the vocabulary"
        raise DataError(f'"{eos_token}" is not a token', where=str(tokenizer_dir), fix=fix)
    tokenizer.add_special_tokens({"eos_token": eos_token})


def tokenizer_config(tokenizer: PreTrainedTokenizerBase) -> dict[str, Any]:
    """The tokenizer.json of a fast tokenizer, decoded."""
    return orjson.loads(tokenizer.backend_tokenizer.to_str())


def save_tokenizer(tokenizer: PreTrainedTokenizerBase, chat_template: str, tokenizer_dir: Path) -> None:
    """Writes the tokenizer's files and chat_template.jinja; raises DataError or OSError."""
    tokenizer.chat_template = chat_template
    try:
        tokenizer.save_pretrained(str(tokenizer_dir))
    except OSError:
        raise
    # The tokenizers library raises a bare Exception when it cannot write.
    except Exception as error:
        raise DataError(f"the tokenizer cannot be saved ({error})", where=str(tokenizer_dir)) from error
    clean_config(tokenizer_dir / "tokenizer_config.json")


def clean_config(config_path: Path) -> None:
    """Rewrites a tokenizer_config.json so that it depends on the tokenizer alone and every transformers reads it."""
    # Not orjson: model_max_length may have more than 64 bits.
    config = json.loads(config_path.read_text(encoding="utf-8"))
    for how_it_was_loaded in ("is_local", "local_files_only"):
        config.pop(how_it_was_loaded, None)
    # The class that takes tokenizer.json as it is, in transformers 4 and 5. Others rebuild parts of it at every load:
    # a Llama tokenizer with `legacy` then encodes differently from the one that was saved.
    config["tokenizer_class"] = "PreTrainedTokenizerFast"
    # Without it that class of transformers 4 hands out token_type_ids, which causal models do not take.
    config.setdefault("model_input_names", ["input_ids", "attention_mask"])
    # A list under this name is new in transformers 5; both read it under the old one.
    if isinstance(config.get("extra_special_tokens"), list):
        config["additional_special_tokens"] = config.pop("extra_special_tokens")
    content = json.dumps(config, indent=2, sort_keys=True, ensure_ascii=False) + "\n"
    config_path.write_text(content, encoding="utf-8")


def tokenizer_sha256(tokenizer_dir: Path) -> str:
    """Hex digest of a saved tokenizer.json in canonical form: keys sorted, no whitespace, UTF-8."""
    config = orjson.loads((tokenizer_dir / "tokenizer.json").read_bytes())
    return hashlib.sha256(orjson.dumps(config, option=orjson.OPT_SORT_KEYS)).hexdigest()


def open_tokenizer(tokenizer_dir: Path) -> Tokenizer:
    """The tokenizer in the folder of a dataset; raises DataError."""
    from tokenizers import Tokenizer

    path = tokenizer_dir / "tokenizer.json"
    try:
        return Tokenizer.from_file(str(path))
    # The tokenizers library raises a bare Exception for whatever is wrong with the file.
    except Exception as error:
        raise DataError(f"the tokenizer cannot be read ({error})", where=str(path)) from error
