"""Keeps special tokens apart from text: the encoding tokenizers know them under private names only.

mft-data does the same when it encodes conversations for training; a contract test keeps the two in step.
"""

import re
from collections.abc import Iterable, Mapping
from typing import Any

# Opens a private name; a Unicode noncharacter, which no prompt may hold.
RESERVED = "\ufdd0"


def private_names(config: Mapping[str, Any]) -> dict[str, str]:
    """Text to private name of every special token of a tokenizer.json."""
    return {token["content"]: f"{RESERVED}{token['id']}\ufdd1" for token in config["added_tokens"] if token["special"]}


def renamed(config: Mapping[str, Any], names: Mapping[str, str]) -> dict[str, Any]:
    """The tokenizer.json with special tokens under other names, ids unchanged; it neither cuts nor pads.

    Merges that would build a special token out of text are left out.
    """
    added_tokens = [
        {**token, "content": names.get(token["content"], token["content"])} for token in config["added_tokens"]
    ]
    model = dict(config["model"])
    vocab = model["vocab"]
    if isinstance(vocab, dict):
        model["vocab"] = {names.get(text, text): token_id for text, token_id in vocab.items()}
    else:
        model["vocab"] = [[names.get(text, text), score] for text, score in vocab]
    if isinstance(model.get("unk_token"), str):
        model["unk_token"] = names.get(model["unk_token"], model["unk_token"])
    if "merges" in model:
        pairs = [merge.split(" ", 1) if isinstance(merge, str) else merge for merge in model["merges"]]
        model["merges"] = [pair for pair in pairs if not {*pair, "".join(pair)} & names.keys()]
    return {**config, "added_tokens": added_tokens, "model": model, "truncation": None, "padding": None}


def continuing(config: Mapping[str, Any]) -> dict[str, Any]:
    """The tokenizer.json that encodes a text as it stands within a longer one: with no space put before it."""
    return {
        **config,
        "normalizer": _without_prefix_space(config["normalizer"]),
        "pre_tokenizer": _without_prefix_space(config["pre_tokenizer"]),
    }


def special_pattern(texts: Iterable[str]) -> re.Pattern[str]:
    """Matches any of the texts, the longest where several begin; without texts it matches nothing."""
    longest_first = sorted(texts, key=len, reverse=True)
    return re.compile("|".join(map(re.escape, longest_first)) or "(?!)")


def _without_prefix_space(step: Mapping[str, Any] | None) -> dict[str, Any] | None:
    """A normalizer or pre-tokenizer that puts no space before a text; None if nothing is left of it."""
    if step is None or step["type"] == "Prepend":
        return None
    step = dict(step)
    for members in ("normalizers", "pretokenizers"):
        if members in step:
            step[members] = [kept for kept in map(_without_prefix_space, step[members]) if kept is not None]
    if "prepend_scheme" in step:
        step["prepend_scheme"] = "never"
    if "add_prefix_space" in step:
        step["add_prefix_space"] = False
    return step
