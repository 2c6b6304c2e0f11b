"""The LoRA adapter that is put on a base model."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from mft_train.errors import TrainError

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from mft_train.config.config import RunConfig


def add_adapter(model: PreTrainedModel, config: RunConfig) -> Any:
    """The model with a LoRA adapter, B zero, the base frozen; raises TrainError for targets it does not have."""
    from peft import LoraConfig, get_peft_model

    settings = config.lora
    adapter = LoraConfig(
        task_type="CAUSAL_LM",
        r=settings.rank,
        lora_alpha=settings.alpha,  # ty: ignore[invalid-argument-type] - peft takes fractions
        lora_dropout=settings.dropout,
        target_modules=settings.target_modules,
    )
    if Path(config.model).is_dir():
        # The adapter must find its base from any working directory.
        model.name_or_path = str(Path(config.model).resolve())
    try:
        peft_model = get_peft_model(model, adapter)
    except ValueError as error:
        raise TrainError(
            f"no adapter can be made: {str(error).splitlines()[0]}", fix="set lora.target_modules to names in the model"
        ) from error
    return peft_model
