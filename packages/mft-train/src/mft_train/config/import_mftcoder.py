"""Converting a training config of MFTCoder 0.3 or 0.5, key by key, with a note on whatever is not the same."""

from __future__ import annotations

import difflib
from dataclasses import dataclass, field
from pathlib import PurePosixPath
from typing import TYPE_CHECKING, Any

import orjson
from pydantic import ValidationError

from mft_train.config.config import RunConfig
from mft_train.config.config_file import explain, write_new_settings
from mft_train.config.import_accelerate import import_accelerate
from mft_train.config.json_file import read_json
from mft_train.config.mftcoder_keys import DEFAULTS, GONE, LOSS_MODES, REQUIRED, SAME, SCHEDULES
from mft_train.errors import TrainError

if TYPE_CHECKING:
    from pathlib import Path

    from mft_train.config.import_accelerate import Launch

# Values that are multiplied and divided here; pydantic checks all others by the keys that they became.
COUNTS = (
    "per_device_train_batch_size",
    "per_device_eval_batch_size",
    "gradient_accumulation_steps",
    "coba_update_interval",
    "coba_sample_valid_num",
    "selfpaced_interval",
    "selfpaced_sample_valid_num",
)
NUMBERS = ("num_warmup_steps", "coba_warmup_steps")


@dataclass(slots=True)
class Import:
    """One conversion: the old values with MFTCoder's defaults, the new settings, and notes as (old key, text)."""

    old: dict[str, Any]
    given: list[str]
    num_processes: int
    where: str
    settings: dict[str, Any] = field(default_factory=dict)
    notes: list[tuple[str, str]] = field(default_factory=list)

    def note(self, key: str, text: str) -> None:
        """Remembers what the user should know about an old key."""
        self.notes.append((key, text))


def import_mftcoder(
    old_path: Path, new_path: Path, program: str, num_processes: int | None, accelerate_path: Path | None = None
) -> list[tuple[str, str]]:
    """Writes the new config; the notes, as (old key, text). Raises TrainError, also if `new_path` exists.

    `num_processes` is that of the old runs; None takes it from accelerate's config, or 1.
    """
    given = read_json(old_path, "the old config")
    launch = import_accelerate(accelerate_path) if accelerate_path else None
    asked = num_processes or (launch.num_processes if launch else None) or 1
    job = convert(given, program, asked, str(old_path))
    if launch:
        add_launch(job, launch)
    try:
        RunConfig.model_validate(job.settings)
    except ValidationError as error:
        raise explain(error, key_places(job.settings, f"the config made from {old_path}"), str(old_path)) from error
    write_new_settings(job.settings, new_path)
    return job.notes


def add_launch(job: Import, launch: Launch) -> None:
    """Adds what accelerate's config says to the settings, in the order of the run's keys."""
    settings = job.settings | launch.settings
    job.settings = {name: settings[name] for name in RunConfig.model_fields if name in settings}
    job.notes += launch.notes


def key_places(settings: dict[str, Any], where: str, prefix: tuple[str, ...] = ()) -> dict[tuple[str, ...], str]:
    """`where` for every key of nested settings."""
    places = {}
    for name, value in settings.items():
        places[*prefix, name] = where
        if isinstance(value, dict):
            places |= key_places(value, where, (*prefix, name))
    return places


def convert(given: dict[str, Any], program: str, num_processes: int, where: str) -> Import:
    """The new settings and the notes for an old config; raises TrainError for keys that MFTCoder does not have."""
    defaults = DEFAULTS[program]
    known = [*REQUIRED, *defaults, *GONE]
    for name in given:
        if name not in known:
            near = difflib.get_close_matches(name, known, n=1)
            fix = f'did you mean "{near[0]}"?' if near else "remove it"
            raise TrainError(f'"{name}" is not a key of MFTCoder {program}', where=where, fix=fix)
    missing = [name for name in REQUIRED if given.get(name) is None]
    if missing:
        raise TrainError(f'key "{missing[0]}" is missing', where=where)
    check_numbers(defaults | given, where)
    job = Import(old={**defaults, **given}, given=list(given), num_processes=num_processes, where=where)
    for old_key, new_key in SAME.items():
        job.settings[new_key] = job.old[old_key]
    for part in (dataset, steps, stopping, schedule, batches, method, loss, attention):
        part(job)
    for name in given:
        if name in GONE:
            job.note(name, f"no key: {GONE[name]}")
    taken = sorted(name for name in defaults if name not in given and name not in GONE)
    if taken:
        values = ", ".join(f"{name} {orjson.dumps(defaults[name]).decode()}" for name in taken)
        job.note("defaults", f"keys that the file does not have were taken with MFTCoder's defaults: {values}")
    job.settings = {name: job.settings[name] for name in RunConfig.model_fields if name in job.settings}
    return job


def check_numbers(values: dict[str, Any], where: str) -> None:
    """Raises TrainError unless the values that an import calculates with are numbers in range."""
    for name in (*COUNTS, *NUMBERS):
        value = values.get(name, 1)
        is_number = isinstance(value, int | float) and not isinstance(value, bool)
        if not is_number or value < 0 or (name in COUNTS and (value < 1 or value != int(value))):
            kind = "a whole number above 0" if name in COUNTS else "a number of at least 0"
            raise TrainError(f"{name} is {value!r}", where=where, fix=f"give {kind}")


def path_list(value: Any) -> list[str]:
    """The paths of a list, or of a list as MFTCoder writes it in a string: "[a/x,a/y]"."""
    paths = value if isinstance(value, list) else str(value).strip().removeprefix("[").removesuffix("]").split(",")
    return [str(path).strip().strip("'\"") for path in paths]


def task_names(value: Any, where: str) -> list[str]:
    """The last folder of every path in `data_paths`, which mft-data makes a task's name; raises TrainError."""
    names = [PurePosixPath(path).name for path in path_list(value)]
    if not all(names) or len(set(names)) < len(names):
        raise TrainError("data_paths does not name a different folder for each task", where=where)
    return names


def dataset(job: Import) -> None:
    """The dataset, which is built beforehand now: the note is the command."""
    value = job.old["data_paths"]
    task_names(value, job.where)
    job.settings["dataset"] = "dataset/"
    command = ["mft-data build", *path_list(value), "dataset/", "--tokenizer", str(job.old["pretrained_model_path"])]
    command += ["--seq-length", str(job.old["seq_length"]), "--validation", str(held_out(job))]
    command += ["--packing", "none" if job.old["padding_mode"] == "padding" else "best-fit"]
    if job.old["tokenize_mode"] == "pretrain":
        command += ["--format", "text"]
    job.note("data_paths", f"build the dataset first: {' '.join(command)}")


def held_out(job: Import) -> float:
    """The validation share of `data_split`, percentages such as "98,2,0"; raises TrainError."""
    try:
        percentages = [float(part) for part in str(job.old["data_split"]).split(",")]
        return round(percentages[1] / sum(percentages), 6)
    except (ValueError, IndexError, ZeroDivisionError) as error:
        split = job.old["data_split"]
        raise TrainError(f'data_split {split!r} is not like "98,2,0"', where=job.where) from error


def steps(job: Import) -> None:
    """The length of the run."""
    if job.old["max_train_steps"] is None:
        job.settings["epochs"] = job.old["num_train_epochs"]
        job.note("num_train_epochs", "an epoch is every packed row once; MFTCoder's ranks skipped rows")
    else:
        job.settings["max_steps"] = job.old["max_train_steps"]
        if "num_train_epochs" in job.given:
            job.note("num_train_epochs", "no key: max_train_steps decides")


def stopping(job: Import) -> None:
    """Early stopping and the number of checkpoints."""
    job.settings["early_stopping_patience"] = job.old["early_stopping_stall_num"] if job.old["early_stopping"] else 0
    job.settings["keep_last"] = job.old["saving_limit"] or 0
    job.note("saving_limit", "changed: keep_last counts the latest checkpoints, the best one is kept beside them")


def schedule(job: Import) -> None:
    """Decay, minimum and warm-up of the learning rate."""
    kind = job.old["lr_scheduler_type"]
    job.settings["schedule"], has_warmup = SCHEDULES.get(kind, ("cosine", True))
    if kind not in SCHEDULES:
        job.note("lr_scheduler_type", f"there is no schedule {kind}: cosine is set")
    job.settings["min_learning_rate"] = job.old["min_lr"]
    job.note("min_lr", "changed: the rate at the end of the decay; MFTCoder raised warm-up to it as well")
    warmup = job.old["num_warmup_steps"] if has_warmup else 0
    if 0 < warmup < 1:
        job.settings["warmup_ratio"] = warmup
    else:
        job.settings["warmup_steps"] = int(warmup)
    job.note("num_warmup_steps", "changed: warm-up counts optimizer steps, MFTCoder's schedule stretched them")
    job.note("weight_decay", "changed: norms and biases are not decayed")


def batches(job: Import) -> None:
    """Batch sizes, in packed rows of the global batch."""
    micro, accumulation = job.old["per_device_train_batch_size"], job.old["gradient_accumulation_steps"]
    job.settings["micro_batch_size"] = micro
    job.settings["global_batch_size"] = micro * accumulation * job.num_processes
    text = f"global_batch_size is {micro} x {accumulation} x {job.num_processes} processes (--processes)"
    job.note("gradient_accumulation_steps", f"changed: {text}, in packed rows")


def method(job: Import) -> None:
    """Adapter or full training."""
    if job.old.get("peft_type") is None:
        job.settings["method"] = "full"
        return
    kind = job.old["peft_type"]
    job.settings["method"] = kind if kind in ("lora", "qlora") else "lora"
    if kind not in ("lora", "qlora"):
        job.note("peft_type", f"changed: there is no {kind}, method lora keeps the base unquantised")
    if kind == "qlora" and job.old.get("quantization") == "8bit":
        job.settings["quantization"] = {"type": "int8"}
    job.settings["lora"] = {
        "rank": job.old["lora_rank"],
        "alpha": job.old["lora_alpha"],
        "dropout": job.old["lora_dropout"],
        "target_modules": job.old["target_modules"] or "all-linear",
    }


def loss(job: Import) -> None:
    """Reduction, task weights and balancer."""
    mode = job.old["weighted_loss_mode"]
    if mode not in LOSS_MODES:
        raise TrainError(
            f'weighted_loss_mode "{mode}" is not known', where=job.where, fix=f"use {', '.join(LOSS_MODES)}"
        )
    reduction, balancer = LOSS_MODES[mode]
    loss: dict[str, Any] = {"reduction": reduction, "balancer": balancer}
    job.settings["loss"] = loss
    job.note("weighted_loss_mode", "changed: counts are those of the global batch, not of each rank's micro batch")
    weights(job)
    if balancer == "coba":
        interval = job.old["coba_update_interval"]
        loss["coba"] = {
            "warmup_updates": -(-job.old["coba_warmup_steps"] // interval),
            "history_length": job.old["coba_history_length"],
            "tau": job.old["coba_tau"],
        }
        probe(job, interval, "coba_sample_valid_num")
        job.note("coba_tau", "changed: the divergence factor is held to 1, as in the paper")
    elif balancer == "self_paced":
        loss["self_paced"] = {
            "history_length": job.old["selfpaced_history_length"],
            "scale": job.old["selfpaced_scale_factor"],
        }
        probe(job, job.old["selfpaced_interval"], "selfpaced_sample_valid_num")
    for prefix, owner in (("coba_", "coba"), ("selfpaced_", "self_paced")):
        for name in job.given:
            if name.startswith(prefix) and owner != balancer:
                job.note(name, f"no key: weighted_loss_mode is {mode}")


def weights(job: Import) -> None:
    """Task weights by name; MFTCoder lists them in the order of the data paths."""
    value = job.old["task_weights"]
    if value is None:
        return
    parts = value if isinstance(value, list) else str(value).strip().strip("[]").split(",")
    names = task_names(job.old["data_paths"], job.where)
    try:
        numbers = [float(part) for part in parts]
    except ValueError as error:
        raise TrainError(f"task_weights {value!r} is not a list of numbers", where=job.where) from error
    if len(numbers) != len(names):
        raise TrainError(f"task_weights has {len(numbers)} numbers for {len(names)} data_paths", where=job.where)
    mode = job.old["weighted_loss_mode"]
    if mode in ("case3", "case4"):
        job.settings["loss"]["task_weights"] = dict(zip(names, numbers, strict=True))
        job.note("task_weights", "changed: in MFTCoder they cancelled wherever a micro batch held one task")
    else:
        job.note("task_weights", f"no key: weights have no effect with weighted_loss_mode {mode}")


def probe(job: Import, interval: int, sample_key: str) -> None:
    """How often and on how many rows a balancer measures."""
    job.settings["loss"]["balancer_interval"] = interval
    job.settings["loss"]["probe_tasks"] = None
    job.settings["loss"]["probe_rows"] = job.old[sample_key] * job.old["per_device_eval_batch_size"]
    job.note(sample_key, "changed: probe_rows counts rows per task over all ranks, the same for the whole run")


def attention(job: Import) -> None:
    """The attention kernel."""
    kind = job.old["attn_implementation"]
    job.settings["attention"] = "auto" if kind == "flash_attention_2" else "segments"
    if kind != "flash_attention_2":
        job.note("attn_implementation", f"changed: {kind} becomes segments, which keeps packed conversations apart")
