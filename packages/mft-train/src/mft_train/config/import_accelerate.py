"""Converting a config file of `accelerate launch`, as MFTCoder has one for DeepSpeed and one for FSDP."""

from __future__ import annotations

import difflib
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import yaml

from mft_train.config.accelerate_keys import DTYPES, GONE, MAPPED, SHARDING
from mft_train.errors import TrainError

if TYPE_CHECKING:
    from pathlib import Path


@dataclass(slots=True)
class Launch:
    """What the file says: settings of a run, notes as (old key, text), and the number of processes, if it has one."""

    where: str
    settings: dict[str, Any] = field(default_factory=dict)
    notes: list[tuple[str, str]] = field(default_factory=list)
    num_processes: int | None = None

    def refused(self, key: str, value: Any, fix: str) -> TrainError:
        """The error for a value that no run here has."""
        return TrainError(f"{key} is {value}, which does not run here", where=self.where, fix=fix)


def import_accelerate(path: Path) -> Launch:
    """The settings of the file; raises TrainError for keys that accelerate does not have and what cannot be run."""
    job = Launch(str(path))
    values = read_yaml(path)
    sections = {name: values.get(name) or {} for name in ("deepspeed_config", "fsdp_config")}
    for name, section in {"": values, **sections}.items():
        check_keys(job, name, section)
    if values.get("megatron_lm_config"):
        raise job.refused("megatron_lm_config", "set", "remove it, and choose DEEPSPEED or FSDP")
    precision = str(values.get("mixed_precision", "no")).lower()
    precision = "no" if precision == "false" else precision  # YAML's reading of an unquoted no
    if precision not in DTYPES:
        raise job.refused("mixed_precision", precision, f"set {' or '.join(DTYPES)}")
    job.settings["dtype"] = DTYPES[precision]
    backend = str(values.get("dynamo_backend", "no")).lower()
    if backend not in ("no", "false"):
        job.notes.append(("dynamo_backend", f"no key: {backend} is not set, see compile"))
    job.num_processes = values.get("num_processes")
    if job.num_processes is not None and (type(job.num_processes) is not int or job.num_processes < 1):
        raise TrainError(f"num_processes is {job.num_processes!r}", where=job.where, fix="give a whole number above 0")
    kind = str(values.get("distributed_type", "NO")).upper()
    if kind == "DEEPSPEED":
        deepspeed(job, sections["deepspeed_config"])
    elif kind == "FSDP":
        fsdp(job, sections["fsdp_config"])
    elif kind not in ("NO", "FALSE", "MULTI_GPU", "MULTI_CPU"):
        raise job.refused("distributed_type", kind, "choose DEEPSPEED, FSDP or MULTI_GPU")
    for name, owner in (("deepspeed_config", "DEEPSPEED"), ("fsdp_config", "FSDP")):
        if sections[name] and kind != owner:
            job.notes.append((name, f"no key: distributed_type is {kind}"))
    return job


def read_yaml(path: Path) -> dict[str, Any]:
    """The mapping in a YAML file; raises TrainError."""
    try:
        values = yaml.safe_load(path.read_text())
    except OSError as error:
        raise TrainError(f"cannot read accelerate's config: {error.strerror}", where=str(path)) from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise TrainError("accelerate's config is not YAML", where=str(path)) from error
    if not isinstance(values, dict):
        raise TrainError("accelerate's config is not a mapping", where=str(path))
    return values


def check_keys(job: Launch, name: str, section: Any) -> None:
    """Notes the keys of a section that became none; raises TrainError for those that are unknown."""
    if not isinstance(section, dict):
        raise TrainError(f"{name} is not a mapping", where=job.where)
    for key, value in section.items():
        path = f"{name}.{key}" if name else str(key)
        if key in GONE[name]:
            if value not in (None, {}):
                job.notes.append((path, f"no key: {GONE[name][key]}"))
        elif key not in MAPPED[name]:
            near = difflib.get_close_matches(str(key), [*MAPPED[name], *GONE[name]], n=1)
            fix = f'did you mean "{near[0]}"?' if near else "remove it"
            raise TrainError(f'"{path}" is not a key of accelerate\'s config', where=job.where, fix=fix)


def deepspeed(job: Launch, section: dict[str, Any]) -> None:
    """ZeRO's stage and what it offloads."""
    path = section.get("deepspeed_config_file")
    stage = section.get("zero_stage", 2)
    if stage not in (0, 1, 2, 3) or isinstance(stage, bool):
        raise job.refused("deepspeed_config.zero_stage", stage, "set 0, 1, 2 or 3")
    offloads = {}
    for key, name in (
        ("offload_optimizer_device", "offload_optimizer"),
        ("offload_param_device", "offload_parameters"),
    ):
        device = str(section.get(key) or "none").lower()
        if device not in ("none", "cpu"):
            raise job.refused(f"deepspeed_config.{key}", device, "set cpu or none")
        offloads[name] = device == "cpu"
    if offloads["offload_parameters"] and stage != 3:
        job.notes.append(("deepspeed_config.offload_param_device", f"no key: it has no effect with zero_stage {stage}"))
        offloads["offload_parameters"] = False
    if stage == 0:
        job.settings["distributed"] = {"engine": "ddp"}
        job.notes.append(
            ("deepspeed_config.zero_stage", "changed: with stage 0 nothing is shared, which is engine ddp")
        )
    else:
        job.settings["distributed"] = {"engine": "deepspeed", "stage": stage, **offloads}
        if path is not None:
            job.settings["distributed"]["deepspeed_config"] = path
            note = "remove there what the run decides: launch names it; zero_optimization.stage is distributed.stage"
            job.notes.append(("deepspeed_config.deepspeed_config_file", note))
    clipping = section.get("gradient_clipping")
    if clipping not in (None, "auto"):
        job.settings["max_grad_norm"] = clipping
    if "gradient_accumulation_steps" in section:
        note = "no key: the accumulation of the training config decides, see global_batch_size"
        job.notes.append(("deepspeed_config.gradient_accumulation_steps", note))


def fsdp(job: Launch, section: dict[str, Any]) -> None:
    """What is shared, and when layers are let go of."""
    strategy = str(section.get("fsdp_sharding_strategy", section.get("fsdp_reshard_after_forward", True))).upper()
    strategy = {"TRUE": "FULL_SHARD", "FALSE": "SHARD_GRAD_OP"}.get(strategy, strategy)
    if strategy not in SHARDING:
        fix = "set FULL_SHARD: weights are shared between all processes, not within a machine"
        raise job.refused("fsdp_config.fsdp_sharding_strategy", strategy, fix)
    is_offloaded = str(section.get("fsdp_offload_params") or "false").lower() != "false"
    is_resharded = SHARDING[strategy]
    if is_resharded is None:
        job.settings["distributed"] = {"engine": "ddp"}
        job.notes.append(
            ("fsdp_config.fsdp_sharding_strategy", "changed: NO_SHARD shares nothing, which is engine ddp")
        )
    else:
        job.settings["distributed"] = {"engine": "fsdp", "reshard_after_forward": is_resharded}
        job.settings["distributed"] |= {"offload_parameters": True} if is_offloaded else {}
    if str(section.get("fsdp_activation_checkpointing") or "false").lower() == "true":
        job.settings["gradient_checkpointing"] = True
    policy = section.get("fsdp_auto_wrap_policy", "TRANSFORMER_BASED_WRAP")
    meaning = "no key" if policy == "TRANSFORMER_BASED_WRAP" else f"changed from {policy}"
    job.notes.append(("fsdp_config.fsdp_auto_wrap_policy", f"{meaning}: every decoder layer is sharded by itself"))
