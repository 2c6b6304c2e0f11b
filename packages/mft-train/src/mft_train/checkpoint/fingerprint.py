"""What identifies a run: the settings that a resume may not change, may change by force, or may change with a word."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from mft_train.config.config_file import flatten_values
from mft_train.errors import TrainError
from mft_train.rows.mixture import proportions

if TYPE_CHECKING:
    from collections.abc import Set as AbstractSet
    from pathlib import Path

    from mft_train.config.config import RunConfig
    from mft_train.model.compute import Compute
    from mft_train.rows.dataset_dir import DatasetDir

# With any of these changed, the weights or the moments of a checkpoint have no meaning.
FIXED = (
    "model",
    "method",
    "lora.rank",
    "lora.target_modules",
    "lora.target_parameters",
    "lora.init",
    "lora.bias",
    "lora.lora_bias",
    "lora.rslora",
    "lora.dora",
    "lora.modules_to_save",
    "quantization.type",
    "quantization.double_quant",
)
# What a run may be given more or less of, or what changes no more than rounding: told, and gone on with.
TOLD = ("max_steps", "epochs", "attention")
# Everything else, such as data, loss and learning rate, is another run: gone on with by force alone.
PLAIN = (
    "method",
    "global_batch_size",
    "mixture",
    "mixture_exponent",
    "mixture_unit",
    "max_repetitions",
    "repeats",
    "guards",
    "seed",
    "optimizer",
    "weight_decay",
    "beta1",
    "beta2",
    "max_grad_norm",
    "learning_rate",
    "min_learning_rate",
    "schedule",
    "warmup_steps",
    "warmup_ratio",
    "max_steps",
    "epochs",
    "validation_rows",
)
# The settings on which others depend.
CHOICES = ("method", "loss.balancer")
BALANCER_SETTINGS = ("balancer", "balancer_interval", "probe_rows", "probe_tasks", "weight_floor")
# A change of these leaves nothing for the memory of a balancer to be compared with.
BALANCED_BY = {
    "dataset",
    "mixture",
    "mixture_exponent",
    "mixture_unit",
    "max_repetitions",
    "shares",
    "repeats",
    "guards",
}


def fingerprint(config: RunConfig, compute: Compute, dataset: DatasetDir, base: str) -> dict[str, Any]:
    """Dotted names of settings and their values; sections that this run does not use are left out.

    `base` is the base model's identity.
    """
    loss = config.loss.model_dump()
    names = ["reduction", "router_aux_loss_coef"]
    names += ["task_counts"] if loss["reduction"].startswith("task_") else []
    names += ["task_weights"] if config.loss.balancer == "static" else [*BALANCER_SETTINGS, config.loss.balancer]
    used = {"balancer": config.loss.balancer} | {name: loss[name] for name in names}
    return {
        "dataset": dataset.manifest_sha256,
        "model": base,
        "dtype": compute.dtype,
        "attention": compute.attention,
        **{name: getattr(config, name) for name in PLAIN},
        # With a limit on repetitions the shares follow from the length of the run.
        **({"shares": proportions(dataset.trained_tasks, config)} if config.max_repetitions else {}),
        **(dict(flatten_values(config.lora.model_dump(), "lora.")) if config.method != "full" else {}),
        **(dict(flatten_values(config.quantization.model_dump(), "quantization.")) if config.method == "qlora" else {}),
        **dict(flatten_values(used, "loss.", whole=("task_weights",))),
    }


def changed_settings(
    saved: dict[str, Any], current: dict[str, Any], checkpoint: Path, *, is_forced: bool, is_talking: bool
) -> set[str]:
    """The names of settings that are not the checkpoint's; raises TrainError if one of them may not change.

    What depends on a choice, as the rank on the method, is compared where the choice is the same.
    """
    has_same_choices = all(saved.get(name) == current[name] for name in CHOICES)
    names = current | saved if has_same_choices else current.keys() & saved.keys()
    changed = [name for name in current | saved if name in names and saved.get(name) != current.get(name)]
    told = {name: difference(name, saved, current) for name in changed}
    refused = [name for name in changed if name in FIXED or (name not in TOLD and not is_forced)]
    if refused:
        is_final = any(name in FIXED for name in refused)
        fix = "resume with the settings, model and dataset of the first start, or train into another output"
        fix += "" if is_final else ", or use --force to go on with the new ones"
        raise TrainError("; ".join(told[name] for name in refused), where=str(checkpoint), fix=fix)
    if is_talking:
        for name in changed:
            click.echo(told[name] if name in TOLD else f"--force: {told[name]}", err=True)
    return set(changed)


def difference(name: str, saved: dict[str, Any], current: dict[str, Any]) -> str:
    """A changed setting in words."""
    if name in ("model", "dataset"):
        return f"the {name} is another ({current[name]}) than the checkpoint was made with ({saved.get(name)})"
    return f"{name} is {current.get(name)!r}, the checkpoint was made with {saved.get(name)!r}"


def forgets_validations(changed: AbstractSet[str]) -> bool:
    """Whether later validations cannot be compared with earlier ones after these changes."""
    return not changed.isdisjoint({"dataset", "validation_rows"})


def forgets_balance(changed: AbstractSet[str]) -> bool:
    """Whether the memory of a balancer has no meaning after these changes."""
    settings = ("loss.balancer", "loss.probe_", "loss.self_paced", "loss.coba", "loss.famo", "loss.focal")
    return not changed.isdisjoint(BALANCED_BY) or any(name.startswith(settings) for name in changed)
