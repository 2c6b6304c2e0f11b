"""What goes with a model on both sides: text to ids, ids to text, where an answer ends; known without its weights."""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mft_infer.encoding.prompt_encoder import PromptEncoder
from mft_infer.errors import InferError
from mft_infer.model.generation_defaults import generation_defaults
from mft_infer.model.model_dir import ModelSource

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

GENERATION_CONFIG = "generation_config.json"
TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model", "vocab.json", "vocab.txt", "spiece.model")


@dataclass(frozen=True, slots=True)
class TextProcessor:
    """`stop_ids` are the tokens that end an answer; `context_length` is in tokens, None where the config has none.

    `sources` are the directories or the hub ids that it was loaded from, `config` is the model's own,
    `generation_defaults` what its makers would have answers made with, under the names of AnswerSettings.
    """

    name: str
    sources: tuple[str, ...]
    config: Any
    tokenizer: "PreTrainedTokenizerBase"
    encoder: PromptEncoder
    stop_ids: frozenset[int]
    context_length: int | None
    generation_defaults: dict[str, Any]

    def token_ids(self, names: Iterable[str]) -> frozenset[int]:
        """The ids of tokens given by their text or their number; raises InferError for one that is not there."""
        vocabulary = self.tokenizer.get_vocab()
        ids = set()
        for name in names:
            if name in vocabulary:
                ids.add(vocabulary[name])
            elif name.isascii() and name.isdigit() and int(name) < len(self.tokenizer):
                ids.add(int(name))
            else:
                raise InferError(f'the tokenizer has no token "{name}"', where=self.name)
        return frozenset(ids)


def load_text_processor(name: str, source: ModelSource) -> TextProcessor:
    """The processor of the model that `name` stands for; an adapter's own tokenizer goes before its base's."""
    tokenizer = _load_tokenizer(_tokenizer_source(source))
    encoder = PromptEncoder(tokenizer, name)
    config = _load_config(source)
    generation_config = _load_generation_config(source.model, config)
    known = generation_config.eos_token_id
    configured = known if isinstance(known, list) else [known]
    if not all(isinstance(token_id, int | None) for token_id in configured):
        raise InferError("an eos_token_id of the generation config is no number", where=source.model)
    return TextProcessor(
        name=name,
        sources=(source.model,) if source.adapter is None else (source.model, str(source.adapter)),
        config=config,
        tokenizer=tokenizer,
        encoder=encoder,
        stop_ids=frozenset({tokenizer.eos_token_id, *configured} - {None}) | encoder.stop_ids,
        context_length=getattr(config.get_text_config(), "max_position_embeddings", None),
        generation_defaults=generation_defaults(generation_config),
    )


def load_error(what: str, name: str, error: Exception) -> InferError:
    """The one line for whatever a library raises about a file of a model."""
    if not Path(name).exists():
        return InferError(f'"{name}" is no directory here and cannot be had from the hub: {first_line(error)}')
    return InferError(f"the {what} does not load: {first_line(error)}", where=name)


def first_line(error: Exception) -> str:
    """The first line of an error's text that says something, with the next one where it ends in a colon."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
    return " ".join(lines[:2]) if lines[0].endswith(":") else lines[0]


def _tokenizer_source(source: ModelSource) -> str:
    adapter_dir = source.adapter
    if adapter_dir is not None and any((adapter_dir / file).is_file() for file in TOKENIZER_FILES):
        return str(adapter_dir)
    return source.model


def _load_tokenizer(name: str) -> "PreTrainedTokenizerBase":
    from transformers import AutoTokenizer

    try:
        tokenizer: Any = AutoTokenizer.from_pretrained(name, trust_remote_code=False)
    except Exception as error:  # the hub client, file parsers and config code each raise their own kinds
        raise load_error("tokenizer", name, error) from error
    return tokenizer


def _load_config(source: ModelSource) -> Any:
    from transformers import AutoConfig

    try:
        return AutoConfig.from_pretrained(source.model, trust_remote_code=False)
    except Exception as error:  # as above
        failure = load_error("model", source.model, error)
        if source.adapter is None:
            raise failure from error
        raise InferError(failure.message, fix=f"or name the base of {source.adapter} with --base") from error


def _load_generation_config(name: str, config: Any) -> Any:
    from transformers import GenerationConfig

    try:
        return GenerationConfig.from_pretrained(name)
    except Exception as error:  # as above
        if not isinstance(error, OSError) or (Path(name) / GENERATION_CONFIG).exists():
            raise load_error("generation config", name, error) from error
        # There is none, which is why transformers makes one of the config, too.
        return GenerationConfig.from_model_config(config)
