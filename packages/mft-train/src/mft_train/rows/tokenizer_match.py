"""Whether the dataset's token ids mean the same to the model: its tokenizer compared with the model's own."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
import orjson

from mft_train.errors import TrainError, first_line

if TYPE_CHECKING:
    from mft_train.config.config import RunConfig
    from mft_train.rows.dataset_dir import DatasetDir

# Any of these says that a model directory has a tokenizer.
TOKENIZER_FILES = ("tokenizer_config.json", "tokenizer.model", "spiece.model", "vocab.json", "vocab.txt")


@dataclass(frozen=True, slots=True)
class Vocabulary:
    """The ids of a tokenizer's tokens, and the token that ends an answer."""

    ids: dict[str, int]
    eos_token: str | None


def check_tokenizer(config: RunConfig, dataset: DatasetDir, *, is_forced: bool) -> None:
    """Raises TrainError if a token id means one token in the dataset and another to the model's own tokenizer.

    Tokens that only one of them has are no mismatch, nor is another chat template. Another end of the answer is told,
    and so is a mismatch that is forced. A model without a tokenizer is taken as it is.
    """
    theirs = model_vocabulary(config.model, trust_remote_code=config.trust_remote_code)
    if theirs is None:
        return
    ours = read_vocabulary(dataset.tokenizer_dir)
    if found := mismatches(ours, theirs):
        token_id, token, other = found[0]
        problem = (
            f"the dataset's tokenizer is not the model's: id {token_id} is {token!r} in the dataset and {other!r} in "
            f"the model, {len(found)} of {len(ours.ids)} tokens differ"
        )
        if not is_forced:
            fix = f"build the dataset with `--tokenizer {config.model}`, or use --force if the model knows these ids"
            raise TrainError(problem, where=str(dataset.path), fix=fix)
        click.echo(f"--force: {problem}", err=True)
    elif ours.eos_token != theirs.eos_token and None not in (ours.eos_token, theirs.eos_token):
        click.echo(
            f'answers in the dataset end with "{ours.eos_token}", the model\'s own tokenizer with "{theirs.eos_token}"',
            err=True,
        )


def mismatches(ours: Vocabulary, theirs: Vocabulary) -> list[tuple[int, str, str | None]]:
    """The ids of our tokens that are another token of theirs, or whose token has another id there, in order."""
    tokens = {token_id: token for token, token_id in theirs.ids.items()}
    found = []
    for token, token_id in sorted(ours.ids.items(), key=lambda pair: pair[1]):
        if tokens.get(token_id, token) != token or theirs.ids.get(token, token_id) != token_id:
            found.append((token_id, token, tokens.get(token_id)))
    return found


def model_vocabulary(model: str, *, trust_remote_code: bool) -> Vocabulary | None:
    """The vocabulary of a model's own tokenizer, None if it has none or none that can be loaded."""
    path = Path(model)
    if (path / "tokenizer.json").is_file():
        return read_vocabulary(path)
    if path.is_dir() and not any((path / name).is_file() for name in TOKENIZER_FILES):
        return None
    from transformers import AutoTokenizer

    try:
        tokenizer: Any = AutoTokenizer.from_pretrained(model, trust_remote_code=trust_remote_code)
    except (OSError, ValueError, KeyError, ImportError) as error:
        click.echo(f"the model's tokenizer is not compared with the dataset's: {first_line(error)}", err=True)
        return None
    return Vocabulary(tokenizer.get_vocab(), tokenizer.eos_token)


def read_vocabulary(directory: Path) -> Vocabulary:
    """The vocabulary in a directory with a tokenizer.json; raises TrainError."""
    path = directory / "tokenizer.json"
    try:
        document = orjson.loads(path.read_bytes())
        pieces = document["model"]["vocab"]
        # A unigram model lists its pieces with their scores.
        ids = dict(pieces) if isinstance(pieces, dict) else {piece: index for index, (piece, _) in enumerate(pieces)}
        ids |= {token["content"]: token["id"] for token in document["added_tokens"]}
        config_path = directory / "tokenizer_config.json"
        eos = orjson.loads(config_path.read_bytes()).get("eos_token") if config_path.is_file() else None
        return Vocabulary(ids, eos["content"] if isinstance(eos, dict) else eos)
    except (OSError, orjson.JSONDecodeError, KeyError, TypeError, ValueError, AttributeError) as error:
        raise TrainError(f"the tokenizer cannot be read: {error}", where=str(path)) from error
