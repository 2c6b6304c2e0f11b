"""What ranks hold themselves while they load a model of about 140 MB: little of what stays pages of its files.

ALL_CELLS=1 in the environment runs all engines and methods.
"""

import json
import os

import pytest
import torch
import yaml
from click.testing import CliRunner

from mft_train.cli import main

# What libraries take while they make a model ready (DeepSpeed about 19 MiB); the model has 138 MB in float32.
SLACK = 24 << 20
ENGINES = {
    "one process": (1, []),
    "ddp": (2, []),
    "fsdp": (2, ["distributed.engine=fsdp"]),
    **{f"stage {n}": (2, ["distributed.engine=deepspeed", f"distributed.stage={n}"]) for n in (1, 2, 3)},
}
METHODS = {name: [f"method={name}"] for name in ("full", "lora", "qlora")}
# Here rank 0 reads and sends what else each rank would read.
SENT = {"full, sent": ["method=full", "trust_remote_code=true"], "dora": ["method=lora", "lora.dora=true"]}
SHARING = ("fsdp", "stage 3")
FILES = ("float32", "bfloat16")
EVERY = [(engine, method, stored) for engine in ENGINES for method in METHODS for stored in FILES]
EVERY += [(engine, method, stored) for engine in SHARING for method in SENT for stored in FILES]
CHOSEN = [("ddp", "lora", "float32"), ("stage 2", "lora", "float32"), ("fsdp", "full", "bfloat16")]
CHOSEN += [("stage 3", "lora", "float32"), ("fsdp", "full, sent", "bfloat16")]
SHAPE = {"vocab_size": 16384, "hidden_size": 512, "intermediate_size": 1408, "num_hidden_layers": 6}


@pytest.fixture(scope="module")
def bases(tmp_path_factory, make_model):
    """The same model with its weights in float32, which a CPU computes with, and in bfloat16."""
    from transformers import AutoModelForCausalLM

    folder = tmp_path_factory.mktemp("bases")
    made = {"float32": make_model(folder / "float32", **SHAPE), "bfloat16": folder / "bfloat16"}
    AutoModelForCausalLM.from_pretrained(made["float32"], dtype=torch.bfloat16).save_pretrained(made["bfloat16"])
    return made


@pytest.fixture(scope="module")
def config(tmp_path_factory, bases, tiny_dataset):
    values = {"model": str(bases["float32"]), "dataset": str(tiny_dataset), "output": "by each run", "max_steps": 1}
    values |= {"global_batch_size": 2, "validation_interval": 0, "trackers": [], "checkpoint_interval": 0}
    path = tmp_path_factory.mktemp("loading") / "run.yaml"
    path.write_text(yaml.safe_dump(values))
    return path


@pytest.fixture(scope="module")
def loading(config, measuring_server):
    """Bytes that each rank holds itself, at the most, until its model is ready to train."""

    def loading(ranks, folder, *overrides):
        printed, memory = folder / "printed.txt", folder / "memory.json"
        command = ["launch", config, f"output={folder / 'run'}", *overrides]
        assert measuring_server.run(ranks, printed, command, memory=str(memory)) == [0] * ranks, printed.read_text()
        return [held["loading"] for held in json.loads(memory.read_text())]

    return loading


@pytest.mark.slow
@pytest.mark.parametrize(("engine", "method", "stored"), EVERY if os.environ.get("ALL_CELLS") else CHOSEN)
def test_loading_takes_what_the_plan_says_at_the_most(loading, config, bases, tmp_path, engine, method, stored):
    ranks, chosen = ENGINES[engine]
    chosen = [*chosen, *(METHODS | SENT)[method], f"model={bases[stored]}"]
    measured = loading(ranks, tmp_path, *chosen)
    arguments = ["plan", str(config), "--processes", str(ranks), "--json", *chosen]
    planned = json.loads(CliRunner().invoke(main, arguments).stdout)["loading"]
    bounds = [planned["rank_0_bytes"], *[planned["other_ranks_bytes"]] * (ranks - 1)]
    cell = f"{engine}, {method}, {stored}"
    print(f"{cell}: {[size >> 20 for size in bounds]} MiB planned, {[size >> 20 for size in measured]} measured")
    for bound, size in zip(bounds, measured, strict=True):
        assert size <= bound + SLACK
        assert bound <= 1.15 * size + SLACK
    assert planned["files_bytes"] == pytest.approx((bases[stored] / "model.safetensors").stat().st_size, rel=1e-3)
    assert planned["machine_bytes"] == sum(bounds) + planned["files_bytes"]
