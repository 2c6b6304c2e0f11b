"""What is trained beside a frozen base, and how that base is held."""

from typing import Annotated, Literal, Self

from pydantic import Field, field_validator, model_validator

from mft_train.config.section import PositiveFloat, PositiveInt, Section

# Initialisations of an adapter that take what it begins with out of the base.
BASE_CHANGING_INITS = ("pissa", "olora")
UNSUPPORTED_INITS = {
    "eva": "looks at training rows before the first step",
    "corda": "looks at training rows before the first step",
    "lora_ga": "looks at gradients before the first step",
    "loftq": "quantises the base by itself",
}


class LoraConfig(Section):
    """Shape of the low-rank adapter."""

    rank: PositiveInt = Field(16, description="inner dimension r of B @ A")
    alpha: PositiveFloat = Field(32.0, description="the update is scaled by alpha / rank")
    dropout: Annotated[float, Field(ge=0, lt=1)] = Field(0.0, description="probability, on the adapter's input")
    target_modules: list[str] | str = Field(
        "all-linear",
        description="module name endings that get an adapter, a regular expression of whole names, or all-linear",
    )
    target_parameters: list[str] = Field(
        [], description="endings of parameters that get an adapter in place of modules, such as experts.gate_up_proj"
    )
    init: Literal["kaiming", "gaussian", "orthogonal", "pissa", "olora"] = Field(
        "kaiming",
        description="the adapter at the start: B zero (kaiming, gaussian), A and B that cancel (orthogonal), or the "
        "largest directions of the weight itself, which it loses (pissa, olora)",
    )
    bias: Literal["none", "all", "lora_only"] = Field(
        "none", description="which biases of the base are trained too: all, or those of layers with an adapter"
    )
    lora_bias: bool = Field(False, description="a bias on B, which is added to the base's")
    rslora: bool = Field(False, description="scale by alpha / sqrt(rank) instead: ranks above 64 keep learning")
    dora: bool = Field(
        False, description="train the length of every row of W + update apart from its direction; slower"
    )
    modules_to_save: list[str] = Field(
        [], description="module name endings that are trained whole beside the adapter, such as embed_tokens"
    )

    @field_validator("init", mode="before")
    @classmethod
    def init_needs_no_data(cls, value: object) -> object:
        """Says of peft's other initialisations why they are not here."""
        if value in UNSUPPORTED_INITS:
            raise ValueError(f"{value} {UNSUPPORTED_INITS[str(value)]}; take pissa, olora, gaussian or orthogonal")
        return value

    @model_validator(mode="after")
    def settings_have_an_effect(self) -> Self:
        """Refuses settings that peft refuses, or would not act on."""
        if self.lora_bias and self.dora:
            raise ValueError("lora_bias does not go with dora")
        if self.lora_bias and self.init != "kaiming":
            raise ValueError(f"lora_bias does not go with init {self.init}")
        if self.target_parameters and (self.dropout or self.dora or self.lora_bias or self.bias != "none"):
            raise ValueError("target_parameters go with no dropout, dora, lora_bias or bias")
        if self.target_parameters and self.init in BASE_CHANGING_INITS:
            raise ValueError(f"target_parameters do not go with init {self.init}")
        if self.init == "orthogonal" and self.rank % 2:
            raise ValueError("init orthogonal needs an even rank")
        return self


class QuantizationConfig(Section):
    """The frozen base in 4 or 8 bits."""

    type: Literal["nf4", "fp4", "int8"] = Field(
        "nf4", description="4-bit numbers by the quantiles of a normal, or floats; or 8-bit whole numbers, by rows"
    )
    double_quant: bool = Field(True, description="4 bits: scales of the blocks in 8 bits, with scales of their own")

    @model_validator(mode="after")
    def settings_have_an_effect(self) -> Self:
        """Refuses a setting that would silently do nothing."""
        if self.type == "int8" and not self.double_quant:
            raise ValueError("double_quant has no effect with type int8")
        return self
