"""What the commands share: which model is loaded and how, and how an answer is made."""

import math
from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import Any, TypeVar


@dataclass(frozen=True, slots=True)
class ModelSettings:
    """Where a model comes from and how it is loaded; `base` stands in for the base that an adapter names."""

    base: str | None = None
    dtype: str = "auto"
    device: str = "auto"
    quantization: str | None = None


@dataclass(frozen=True, slots=True)
class AnswerSettings:
    """How an answer is made; `temperature` 0 is greedy, `top_p` 1, `top_k` 0 and `min_p` 0 leave all tokens in.

    `stop` are texts, `stop_token` special tokens by their text or other tokens by their id.
    """

    max_new_tokens: int = 512
    temperature: float = 0.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    beams: int = 1
    seed: int = 0
    stop: tuple[str, ...] = ()
    stop_token: tuple[str, ...] = ()
    logprobs: bool = False


# What the settings may be that come from elsewhere than the command line.
IS_RIGHT: dict[str, Callable[[Any], bool]] = {
    "max_new_tokens": lambda value: value >= 1,
    "temperature": lambda value: 0 <= value < math.inf,
    "top_p": lambda value: 0 < value <= 1,
    "top_k": lambda value: value >= 0,
    "min_p": lambda value: 0 <= value <= 1,
    "repetition_penalty": lambda value: 0 < value < math.inf,
    "beams": lambda value: value >= 1,
    "seed": lambda value: -(2**63) <= value < 2**63,
}


@dataclass(frozen=True, slots=True)
class PromptSettings:
    """What is added to conversations: a `system` message to those without one, and variables of the chat template."""

    system: str | None = None
    template_argument: tuple[tuple[str, Any], ...] = ()


Settings = TypeVar("Settings", ModelSettings, AnswerSettings, PromptSettings)


def take(kind: type[Settings], options: dict[str, Any]) -> Settings:
    """The settings of one kind, taken out of a command's `options`, which have the same names."""
    return kind(**{field.name: options.pop(field.name) for field in fields(kind) if field.name in options})
