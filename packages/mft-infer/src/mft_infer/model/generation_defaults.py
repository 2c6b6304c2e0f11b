"""What a model's generation config would have answers made with: shown, and used only where that is asked for."""

from dataclasses import asdict, replace
from typing import Any

import click

from mft_infer.errors import InferError
from mft_infer.settings import IS_RIGHT, AnswerSettings

SAMPLING_NAMES = ("temperature", "top_p", "top_k", "min_p")


def generation_defaults(config: Any) -> dict[str, Any]:
    """The settings of answers that a generation config holds, without those that change nothing."""
    found = {"repetition_penalty": config.repetition_penalty, "beams": config.num_beams}
    if config.do_sample:
        found |= {name: getattr(config, name, None) for name in SAMPLING_NAMES} | {"beams": None}
        found["temperature"] = 1.0 if found["temperature"] is None else found["temperature"]
    harmless = asdict(AnswerSettings())
    return {name: value for name, value in found.items() if value is not None and value != harmless[name]}


def with_defaults(
    settings: AnswerSettings, defaults: dict[str, Any], *, given: frozenset[str], wanted: bool
) -> AnswerSettings:
    """The settings with the model's own in place of those not `given`, if `wanted`; else they are told only."""
    if not defaults:
        return settings
    shown = ", ".join(f"{name} {value}" for name, value in sorted(defaults.items()))
    if not wanted:
        click.echo(f"the model's generation config has {shown}: not used without --generation-config", err=True)
        return settings
    for name, value in defaults.items():
        if not isinstance(value, int | float) or not IS_RIGHT[name](value):
            raise InferError(f"the {name} {value!r} of the model's generation config is none", fix="give your own")
    used = {name: value for name, value in defaults.items() if name not in given}
    click.echo(f"from the model's generation config: {shown}", err=True)
    if used.get("beams", settings.beams) > 1 and used.get("temperature", settings.temperature) > 0:
        raise InferError("beams of the generation config go with temperature 0 only", fix="give --beams 1")
    return replace(settings, **used)
