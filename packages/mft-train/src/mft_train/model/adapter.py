"""The LoRA adapter that is put on a base model."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from mft_train.errors import TrainError

if TYPE_CHECKING:
    from torch import nn
    from transformers import PreTrainedModel

    from mft_train.config.config import RunConfig


def add_adapter(model: PreTrainedModel, config: RunConfig) -> Any:
    """The model with a LoRA adapter, B zero, the base frozen; raises TrainError for modules it does not have.

    What is trained is float32.
    """
    from peft import LoraConfig, get_peft_model

    settings = config.lora
    is_by_parameter = bool(settings.target_parameters) and settings.target_modules == "all-linear"
    adapter = LoraConfig(
        task_type="CAUSAL_LM",
        r=settings.rank,
        lora_alpha=settings.alpha,  # ty: ignore[invalid-argument-type] - peft takes fractions
        lora_dropout=settings.dropout,
        target_modules=[] if is_by_parameter else settings.target_modules,
        target_parameters=settings.target_parameters or None,
        # What changes the base comes later, on the rank that has its values.
        init_lora_weights=settings.init if settings.init in ("gaussian", "orthogonal") else True,
        bias=settings.bias,
        lora_bias=settings.lora_bias,
        exclude_modules=None
        if is_by_parameter or settings.target_modules != "all-linear"
        else fused_projections(model),
        use_rslora=settings.rslora,
        use_dora=settings.dora,
        modules_to_save=settings.modules_to_save or None,
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
    check_saved_modules(peft_model, settings.modules_to_save)
    if settings.lora_bias:
        check_biases(peft_model)
    for parameter in peft_model.parameters():
        if parameter.requires_grad and parameter.is_floating_point():
            parameter.data = parameter.data.float()  # a module that is trained whole comes in the base's type
    return peft_model


def fused_projections(model: nn.Module) -> list[str] | None:
    """The names of linear layers whose weight a fused kernel reads, so that an adapter on them would do nothing.

    Those are the projections of time steps and of the output in Mamba's mixers.
    """
    mixers = [
        (name, module) for name, module in model.named_modules() if hasattr(module, "conv1d") and hasattr(module, "D")
    ]
    found = [f"{name}.{part}" for name, module in mixers for part in ("dt_proj", "out_proj") if hasattr(module, part)]
    return found or None


def check_saved_modules(model: nn.Module, endings: list[str]) -> None:
    """Raises TrainError for a module to train whole that the model does not have: peft would not say so."""
    from peft.utils.other import ModulesToSaveWrapper

    found = {
        name.rpartition(".")[2] for name, module in model.named_modules() if isinstance(module, ModulesToSaveWrapper)
    }
    missing = sorted({ending.rpartition(".")[2] for ending in endings} - found)
    if missing:
        raise TrainError(
            f'no module of the model ends in "{missing[0]}"', fix="set lora.modules_to_save to names in it"
        )


def check_biases(model: nn.Module) -> None:
    """Raises TrainError where an adapter's bias has none to be added to: no plain model could hold it."""
    from peft.tuners.lora import LoraLayer

    for name, layer in model.named_modules():
        if isinstance(layer, LoraLayer) and getattr(layer.get_base_layer(), "bias", None) is None:
            raise TrainError(
                f'lora.lora_bias adds to biases, "{name}" has none',
                fix="name layers that have one in lora.target_modules, or remove lora.lora_bias",
            )
