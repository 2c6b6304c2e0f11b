"""A model loaded from a directory, with its adapter in it, and its text processor."""

import importlib.util
import logging
import warnings
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mft_infer.decoding.forward import Forward
from mft_infer.errors import InferError
from mft_infer.model.device import find_device, set_threads
from mft_infer.model.model_dir import find_model
from mft_infer.model.text_processor import TextProcessor, first_line, load_error, load_text_processor
from mft_infer.settings import ModelSettings

if TYPE_CHECKING:
    from transformers import PreTrainedModel

ADAPTER_WEIGHTS = ("adapter_model.safetensors", "adapter_model.bin")


@dataclass(frozen=True, slots=True)
class LanguageModel(TextProcessor):
    """A text processor with its model: weights on a device, and the forward pass over them."""

    model: "PreTrainedModel"
    forward: Forward

    @property
    def dtype(self) -> str:
        """The type of the weights, as torch names it."""
        return str(self.model.dtype).removeprefix("torch.")


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
    processor = load_text_processor(name, source)
    model = _load_model(source.model, processor.config, dtype, device, settings.quantization)
    if source.adapter is not None:
        model = _with_adapter(model, source.adapter)
    if settings.quantization is None:
        try:
            model = model.to(device)
        except (RuntimeError, AssertionError) as error:
            raise InferError(f"the model does not load on {device}: {first_line(error)}") from error
    model.eval()
    if settings.quantization is not None:
        _check_rounded(model, name)
    # What transformers' own generation would otherwise take from it without a word.
    model.generation_config = transformers.GenerationConfig()
    known = {field.name: getattr(processor, field.name) for field in fields(processor)}
    return LanguageModel(**known, model=model, forward=Forward(model))


def _load_model(name: str, config: Any, dtype: Any, device: Any, quantization: str | None) -> "PreTrainedModel":
    try:
        model, loading = _auto_class(config).from_pretrained(
            name,
            config=config,
            dtype=dtype,
            output_loading_info=True,
            trust_remote_code=False,
            **_rounding(quantization, dtype, device),
        )
    except (InferError, KeyboardInterrupt):
        raise
    except Exception as error:  # the hub client, file parsers and config code each raise their own kinds
        raise load_error("model", name, error) from error
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
    _quiet_bitsandbytes()
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


def _quiet_bitsandbytes() -> None:
    """No warnings of a kernel that nothing here uses, nor, from every layer and for every token, of a cast."""
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)


def _check_rounded(model: "PreTrainedModel", name: str) -> None:
    """Refuses a model with layers of a shape that the rounding's kernels do not take, which shows only when it runs."""
    import torch

    try:
        with torch.inference_mode():
            model(input_ids=torch.zeros(1, 1, dtype=torch.long, device=model.device), use_cache=False)
    except RuntimeError as error:
        fix = "use the other --quantization, or none"
        raise InferError(f"the rounded model does not run: {first_line(error)}", where=name, fix=fix) from error


def _auto_class(config: Any) -> Any:
    """What loads the model: as a causal language model, or as one of images and text that is given text alone."""
    from transformers import AutoModelForCausalLM, AutoModelForImageTextToText

    kind = type(config)
    is_shell = kind in AutoModelForImageTextToText._model_mapping and kind not in AutoModelForCausalLM._model_mapping
    return AutoModelForImageTextToText if is_shell else AutoModelForCausalLM


def _with_adapter(model: "PreTrainedModel", adapter_dir: Path) -> "PreTrainedModel":
    """The model with the adapter's layers in it; the wrapper of PEFT around it is not needed for generation."""
    if not any((adapter_dir / name).is_file() for name in ADAPTER_WEIGHTS):
        raise InferError("the adapter has no weights", where=str(adapter_dir), fix=f"it needs {ADAPTER_WEIGHTS[0]}")
    _quiet_bitsandbytes()  # which PEFT imports
    from peft import PeftModel

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            warnings.filterwarnings("error", message="Found missing adapter keys")
            adapted: Any = PeftModel.from_pretrained(model, adapter_dir)
    except Exception as error:  # PEFT raises whatever its many parts raise
        raise load_error("adapter", str(adapter_dir), error) from error
    if adapted.active_peft_config.is_prompt_learning:
        raise InferError("adapters that learn a prompt are not supported", where=str(adapter_dir))
    return adapted.get_base_model()
