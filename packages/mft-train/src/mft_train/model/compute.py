"""How a run computes: decided once at its start from the config and the machine, and passed on from there."""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from mft_train.errors import TrainError
from mft_train.model import segment_attention

if TYPE_CHECKING:
    import torch

    from mft_train.config.config import RunConfig


@dataclass(frozen=True, slots=True)
class Compute:
    """The settled values of what a config may leave open."""

    device: torch.device  # its kind: cpu, or cuda of whatever number
    dtype: str  # float32 or bfloat16
    attention: str  # a name that transformers knows
    gradient_checkpointing: bool

    def settled(self, config: RunConfig) -> RunConfig:
        """The config with these values in the place of `auto`."""
        values = {name: getattr(self, name) for name in ("dtype", "attention", "gradient_checkpointing")}
        return config.model_copy(update=values)


def run_device() -> torch.device:
    """The kind of device that a run on this machine uses."""
    import torch

    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def settle_compute(config: RunConfig, device: torch.device) -> Compute:
    """How `config` computes on `device`; raises TrainError for an attention that cannot run there.

    Gradient checkpointing that is `auto` counts as off until the memory is known.
    """
    return Compute(
        device, compute_dtype(config, device), attention(config, device), config.gradient_checkpointing is True
    )


def compute_dtype(config: RunConfig, device: torch.device) -> str:
    """The compute type's name; `auto` is float32 on a CPU, where bfloat16 is emulated, and bfloat16 elsewhere."""
    if config.dtype != "auto":
        return config.dtype
    return "float32" if device.type == "cpu" else "bfloat16"


def attention(config: RunConfig, device: torch.device) -> str:
    """The attention implementation's name; raises TrainError if flash-attn is asked for and cannot run."""
    has_flash = importlib.util.find_spec("flash_attn") is not None and device.type == "cuda"
    if config.attention == "flash_attention_2" and not has_flash:
        raise TrainError(
            "attention flash_attention_2 needs a CUDA device and the flash-attn package",
            fix="pip install flash-attn --no-build-isolation, or set attention: segments",
        )
    if config.attention != "auto":
        return config.attention
    if has_own_code(config):
        return "eager"  # the one that every model has
    model_class = find_model_class(config.model)
    if model_class is None or model_class._supports_attention_backend:
        return "flash_attention_2" if has_flash else segment_attention.NAME
    return "sdpa" if model_class._supports_sdpa else "eager"


def has_own_code(config: RunConfig) -> bool:
    """Whether the base model is run by Python code that comes with it."""
    return config.trust_remote_code and "AutoModelForCausalLM" in read_model_config(config.model).get("auto_map", {})


def find_model_class(model: str) -> Any:
    """The class of transformers that a base model is loaded as; None if there is none, which its loading will tell."""
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING

    try:
        return MODEL_FOR_CAUSAL_LM_MAPPING[CONFIG_MAPPING[read_model_config(model)["model_type"]]]
    except KeyError:
        return None


def read_model_config(model: str) -> dict[str, Any]:
    """What the config.json of a model says; empty if it cannot be read, which the loading of the model will tell."""
    from transformers import PretrainedConfig

    try:
        values, _ = PretrainedConfig.get_config_dict(model)
    except (OSError, ValueError):
        return {}
    return values
