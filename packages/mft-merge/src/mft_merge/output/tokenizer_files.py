"""The tokenizer's files: which directory they come from, and the token that ends an answer."""

import shutil
from pathlib import Path
from typing import Any

from mft_merge.files.json_file import check_kinds, read_json

VOCABULARY_FILES = (
    "tokenizer.json",
    "tokenizer.model",
    "vocab.json",
    "vocab.txt",
    "spiece.model",
    "sentencepiece.bpe.model",
)
TOKENIZER_FILES = (
    *VOCABULARY_FILES,
    "added_tokens.json",
    "chat_template.json",
    "merges.txt",
    "special_tokens_map.json",
    "tokenizer_config.json",
)
TEMPLATE_FILE = "chat_template.jinja"
TEMPLATE_DIR = "additional_chat_templates"


def tokenizer_paths(adapter_dir: Path, base_dir: Path) -> dict[str, Path]:
    """The tokenizer files and chat templates, by their path in a model directory.

    They are the adapter's if it has a tokenizer, else the base's; a chat template beside the adapter always counts.
    """
    has_own = any((adapter_dir / name).is_file() for name in VOCABULARY_FILES)
    chosen = adapter_dir if has_own else base_dir
    paths = {name: chosen / name for name in TOKENIZER_FILES}
    template_dir = adapter_dir if (adapter_dir / TEMPLATE_FILE).is_file() else chosen
    templates = (
        TEMPLATE_FILE,
        *(f"{TEMPLATE_DIR}/{path.name}" for path in (template_dir / TEMPLATE_DIR).glob("*.jinja")),
    )
    paths |= {name: template_dir / name for name in sorted(templates)}
    return {name: path for name, path in paths.items() if path.is_file()}


def copy_tokenizer(source_dir: Path, out_dir: Path) -> None:
    """Copy the tokenizer files of a directory, if it has any."""
    for name, path in tokenizer_paths(source_dir, source_dir).items():
        (out_dir / name).parent.mkdir(exist_ok=True)
        shutil.copyfile(path, out_dir / name)


def with_old_tokenizer_keys(config: dict[str, Any]) -> dict[str, Any]:
    """The content of tokenizer_config.json such that transformers before version 5 takes the same tokenizer from it.

    Version 5 names its own class and a list of `extra_special_tokens`; older versions know neither, and their
    class adds `token_type_ids` to its output, which causal models refuse.
    """
    config = dict(config)
    if isinstance(config.get("extra_special_tokens"), list) and "additional_special_tokens" not in config:
        config["additional_special_tokens"] = config.pop("extra_special_tokens")
    if config.get("tokenizer_class") == "TokenizersBackend":
        config["tokenizer_class"] = "PreTrainedTokenizerFast"
        config.setdefault("model_input_names", ["input_ids", "attention_mask"])
    return config


def stop_token_id(tokenizer_dir: Path) -> int | None:
    """The id of the EOS token of the tokenizer in `tokenizer_dir`, or None where its files do not say."""
    token: Any = None
    for name in ("tokenizer_config.json", "special_tokens_map.json"):
        if token is None and (tokenizer_dir / name).is_file():
            token = read_json(tokenizer_dir / name).get("eos_token")
    text = token.get("content") if isinstance(token, dict) else token
    if text is None:
        return None
    return next((token_id for name, token_id in _token_ids(tokenizer_dir) if name == text), None)


def with_stop_token(config: dict[str, Any], stop_id: int) -> dict[str, Any]:
    """The config with `stop_id` among its `eos_token_id`; the ids that it had still stop generation."""
    known = config.get("eos_token_id")
    ids = known if isinstance(known, list) else [] if known is None else [known]
    if stop_id in ids:
        return config
    return config | {"eos_token_id": [stop_id, *ids] if ids else stop_id}


def _token_ids(tokenizer_dir: Path) -> list[tuple[str, int]]:
    """Every (token, id) that the tokenizer's JSON files name, added tokens first."""
    pairs: list[tuple[str, int]] = []
    if (tokenizer_dir / "tokenizer.json").is_file():
        fast = read_json(tokenizer_dir / "tokenizer.json")
        check_kinds(fast, {"added_tokens": (list,), "model": (dict,)}, tokenizer_dir / "tokenizer.json")
        pairs += [(token["content"], token["id"]) for token in fast.get("added_tokens") or []]
        vocabulary = (fast.get("model") or {}).get("vocab")
        if isinstance(vocabulary, dict):
            pairs += vocabulary.items()
        elif isinstance(vocabulary, list):
            pairs += [(entry[0], index) for index, entry in enumerate(vocabulary)]
    elif (tokenizer_dir / "tokenizer_config.json").is_file():
        decoder = read_json(tokenizer_dir / "tokenizer_config.json").get("added_tokens_decoder") or {}
        pairs += [(token["content"], int(index)) for index, token in decoder.items()]
    return pairs
