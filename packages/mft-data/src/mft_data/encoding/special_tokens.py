"""Keeps special tokens apart from text: in the encoding tokenizer they answer only to private names.

A special token, say `<|im_end|>`, is renamed in place (same id) to a name that no content can hold. The template
writes the private names; the characters `<|im_end|>` in a content have become plain text.
"""

import re
from collections.abc import Iterable, Mapping
from typing import Any

from mft_data.reading.conversation import RESERVED_CHARACTER


def private_name(token_id: int) -> str:
    """The name that the special token of this id answers to in an encoding tokenizer."""
    return f"{RESERVED_CHARACTER}{token_id}\ufdd1"


def special_token_ids(config: Mapping[str, Any]) -> dict[str, int]:
    """Text to id of every added token marked special in a tokenizer.json."""
    return {token["content"]: token["id"] for token in config["added_tokens"] if token["special"]}


def private_names(config: Mapping[str, Any]) -> dict[str, str]:
    """Text to private name of every special token."""
    return {text: private_name(token_id) for text, token_id in special_token_ids(config).items()}


def plain_config(config: Mapping[str, Any]) -> dict[str, Any]:
    """The tokenizer.json without the parts that add, cut or pad tokens."""
    return {**config, "post_processor": None, "truncation": None, "padding": None}


def renamed_config(config: Mapping[str, Any]) -> dict[str, Any]:
    """The tokenizer.json with every special token renamed, ids unchanged."""
    names = private_names(config)
    added_tokens = [
        {**token, "content": names[token["content"]] if token["special"] else token["content"]}
        for token in config["added_tokens"]
    ]
    return {**config, "added_tokens": added_tokens, "model": renamed_model(config["model"], names)}


def renamed_model(model: Mapping[str, Any], names: Mapping[str, str]) -> dict[str, Any]:
    """The model with renamed vocabulary entries; merges that would build a special token from text are left out."""
    renamed = dict(model)
    vocab = model["vocab"]
    if isinstance(vocab, dict):
        renamed["vocab"] = {names.get(text, text): token_id for text, token_id in vocab.items()}
    else:
        renamed["vocab"] = [[names.get(text, text), score] for text, score in vocab]
    if isinstance(model.get("unk_token"), str):
        renamed["unk_token"] = names.get(model["unk_token"], model["unk_token"])
    if "merges" in model:
        pairs = (merge.split(" ", 1) if isinstance(merge, str) else merge for merge in model["merges"])
        renamed["merges"] = [[left, right] for left, right in pairs if not {left, right, left + right} & names.keys()]
    return renamed


def without_prefix_space(config: Mapping[str, Any]) -> dict[str, Any]:
    """The tokenizer.json that encodes a text as it would stand in the middle of a longer one."""
    return {
        **config,
        "normalizer": drop_prefix_space(config["normalizer"]),
        "pre_tokenizer": drop_prefix_space(config["pre_tokenizer"]),
    }


def drop_prefix_space(step: Mapping[str, Any] | None) -> dict[str, Any] | None:
    """One normalizer or pre-tokenizer without the space that it puts before a text; None if nothing is left."""
    if step is None or step["type"] == "Prepend":
        return None
    step = dict(step)
    for members in ("normalizers", "pretokenizers"):
        if members in step:
            step[members] = [kept for kept in map(drop_prefix_space, step[members]) if kept is not None]
    if "prepend_scheme" in step:
        step["prepend_scheme"] = "never"
    if "add_prefix_space" in step:
        step["add_prefix_space"] = False
    return step


def unknown_token_id(config: Mapping[str, Any]) -> int | None:
    """The id that stands for text outside the vocabulary, if the model has one."""
    model = config["model"]
    if model.get("unk_id") is not None:
        return model["unk_id"]
    unk_token = model.get("unk_token")
    if not isinstance(unk_token, str):
        return None
    return model["vocab"].get(unk_token, special_token_ids(config).get(unk_token))


def special_pattern(texts: Iterable[str]) -> re.Pattern[str]:
    """Matches any of the texts, in one group; where several begin, the longest."""
    longest_first = sorted(texts, key=len, reverse=True)
    # Without any text: what never matches.
    return re.compile(f"({'|'.join(map(re.escape, longest_first)) or '(?!)'})")
