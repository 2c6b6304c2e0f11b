"""A model with its tokenizer, loaded from a directory, and what it needs to be talked to: templates, stops, limits."""

import importlib.util
import warnings
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mft_infer.decoding.forward import Forward
from mft_infer.encoding.prompt_encoder import PromptEncoder
from mft_infer.errors import InferError
from mft_infer.model.device import find_device, set_threads
from mft_infer.model.generation_defaults import generation_defaults
from mft_infer.model.model_dir import find_model
from mft_infer.settings import ModelSettings

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model", "vocab.json", "vocab.txt", "spiece.model")


@dataclass(frozen=True, slots=True)
class LanguageModel:
    """`stop_ids` are the tokens that end an answer; `context_length` is in tokens, None where the config has none.

    `sources` are the directories or the hub ids that it was loaded from, `generation_defaults` what its makers would
    have answers made with, under the names of AnswerSettings.
    """

    name: str
    model: "PreTrainedModel"
    tokenizer: "PreTrainedTokenizerBase"
    encoder: PromptEncoder
    forward: Forward
    stop_ids: frozenset[int]
    context_length: int | None
    sources: tuple[str, ...]
    generation_defaults: dict[str, Any]

    @property
    def dtype(self) -> str:
        """The type of the weights, as torch names it."""
        return str(self.model.dtype).removeprefix("torch.")

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


def load_language_model(name: str, settings: ModelSettings) -> LanguageModel:
    """The model directory, adapter directory or hub id `name`."""
    import torch
    import transformers

    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    device = find_device(settings.device)
    set_threads()
    dtype: Any = torch.float32 if device.type == "cpu" else "auto"
    if settings.dtype != "auto":
        dtype = getattr(torch, settings.dtype)
    source = find_model(name, settings.base)
    adapter_dir = source.adapter
    has_own_tokenizer = adapter_dir and any((adapter_dir / file).is_file() for file in TOKENIZER_FILES)
    tokenizer = _load_tokenizer(str(adapter_dir) if has_own_tokenizer else source.model)
    encoder = PromptEncoder(tokenizer, name)
    model = _load_model(source.model, dtype, device, settings.quantization)
    if adapter_dir is not None:
        model = _with_adapter(model, adapter_dir)
    if settings.quantization is None:
        try:
            model = model.to(device)
        except (RuntimeError, AssertionError) as error:
            raise InferError(f"the model does not load on {device}: {_first_line(error)}") from error
    model.eval()
    context_length = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    sources = (source.model,) if adapter_dir is None else (source.model, str(adapter_dir))
    stop_ids = _stop_ids(model, tokenizer, encoder)
    defaults = generation_defaults(model.generation_config)
    # What transformers' own generation would otherwise take from it without a word.
    model.generation_config = transformers.GenerationConfig()
    return LanguageModel(name, model, tokenizer, encoder, Forward(model), stop_ids, context_length, sources, defaults)


def _load_tokenizer(name: str) -> "PreTrainedTokenizerBase":
    from transformers import AutoTokenizer

    try:
        tokenizer: Any = AutoTokenizer.from_pretrained(name, trust_remote_code=False)
    except Exception as error:  # the hub client, file parsers and config code each raise their own kinds
        raise _load_error("tokenizer", name, error) from error
    return tokenizer


def _load_model(name: str, dtype: Any, device: Any, quantization: str | None) -> "PreTrainedModel":
    try:
        model, loading = _auto_class(name).from_pretrained(
            name,
            dtype=dtype,
            output_loading_info=True,
            trust_remote_code=False,
            **_rounding(quantization, dtype, device),
        )
    except (InferError, KeyboardInterrupt):
        raise
    except Exception as error:  # the hub client, file parsers and config code each raise their own kinds
        raise _load_error("model", name, error) from error
    for problem, keys in (("missing", loading["missing_keys"]), ("of another shape", loading["mismatched_keys"])):
        for key in sorted(map(str, keys)):
            # transformers would go on with random weights.
            raise InferError(f"weight {key} is {problem}", where=name)
    return model


def _rounding(quantization: str | None, dtype: Any, device: Any) -> dict[str, Any]:
    """What has the weights rounded while they are loaded: to 8 bits, or to 4 bits (NF4, scales rounded as well)."""
    if quantization is None:
        return {}
    if importlib.util.find_spec("bitsandbytes") is None:
        raise InferError("--quantization needs bitsandbytes", fix='pip install "mft-infer[quantization]"')
    import torch
    from transformers import BitsAndBytesConfig

    # Rounded weights cannot be moved later.
    placed = {"device_map": {"": device}}
    if quantization == "8bit":
        return {**placed, "quantization_config": BitsAndBytesConfig(load_in_8bit=True)}
    config = BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=dtype if isinstance(dtype, torch.dtype) else torch.bfloat16,
    )
    return {**placed, "quantization_config": config}


def _auto_class(name: str) -> Any:
    """What loads the model: as a causal language model, or as one of images and text that is given text alone."""
    from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForImageTextToText

    kind = type(AutoConfig.from_pretrained(name, trust_remote_code=False))
    is_shell = kind in AutoModelForImageTextToText._model_mapping and kind not in AutoModelForCausalLM._model_mapping
    return AutoModelForImageTextToText if is_shell else AutoModelForCausalLM


def _with_adapter(model: "PreTrainedModel", adapter_dir: Path) -> "PreTrainedModel":
    """The model with the adapter's layers in it; the wrapper of PEFT around it is not needed for generation."""
    from peft import PeftModel

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            warnings.filterwarnings("error", message="Found missing adapter keys")
            adapted: Any = PeftModel.from_pretrained(model, adapter_dir)
    except Exception as error:  # PEFT raises whatever its many parts raise
        raise _load_error("adapter", str(adapter_dir), error) from error
    if adapted.active_peft_config.is_prompt_learning:
        raise InferError("adapters that learn a prompt are not supported", where=str(adapter_dir))
    return adapted.get_base_model()


def _load_error(what: str, name: str, error: Exception) -> InferError:
    if not Path(name).exists():
        return InferError(f'"{name}" is no directory here and cannot be had from the hub: {_first_line(error)}')
    return InferError(f"the {what} does not load: {_first_line(error)}", where=name)


def _first_line(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0] if lines else type(error).__name__


def _stop_ids(model: "PreTrainedModel", tokenizer: "PreTrainedTokenizerBase", encoder: PromptEncoder) -> frozenset[int]:
    """The ids that end an answer: the tokenizer's EOS, the generation config's, those that the template puts there."""
    known = model.generation_config.eos_token_id
    configured = known if isinstance(known, list) else [known]
    return frozenset({tokenizer.eos_token_id, *configured} - {None}) | encoder.stop_ids
