"""The plan against whole runs: what their ranks hold at most, above what they hold before the model is loaded.

That is anonymous memory, and pages of the files of weights; every block of 64 KiB or more is given back to the system
when it is freed, so that only what is in use counts. ALL_CELLS=1 in the environment runs all engines and methods.
"""

import json
import os
import sys

import numpy as np
import pytest
import yaml
from click.testing import CliRunner

from mft_train.cli import main

ENGINES = {
    "one process": (1, []),
    "ddp": (2, []),
    "fsdp": (2, ["distributed.engine=fsdp"]),
    **{f"stage {n}": (2, ["distributed.engine=deepspeed", f"distributed.stage={n}"]) for n in (1, 2, 3)},
}
METHODS = ("full", "lora", "qlora")
EVERY = [(engine, method) for engine in ENGINES for method in METHODS]
CHOSEN = [("ddp", "lora"), ("fsdp", "full"), ("stage 3", "full")]
SHAPE = {"vocab_size": 8192, "hidden_size": 256, "intermediate_size": 704, "num_hidden_layers": 6}


def full_row(generator, seq_length):
    """A row without room left, two conversations that are half supervised."""
    half = seq_length // 2
    return {
        "input_ids": generator.integers(0, 97, size=seq_length).astype(np.uint16),
        "loss_mask": (np.arange(seq_length) % half >= half // 2).astype(np.uint8),
        "segment_lengths": np.array([half, seq_length - half], np.uint32),
    }


@pytest.fixture(scope="module")
def config(tmp_path_factory, make_model, make_dataset):
    folder = tmp_path_factory.mktemp("measured")
    made = sys.modules[make_dataset.__module__]
    own, made.random_row = made.random_row, full_row
    try:
        dataset = make_dataset(folder / "dataset", {"a": (16, 1), "b": (16, 1)}, seq_length=256)
    finally:
        made.random_row = own
    values = {"model": str(make_model(folder / "base", **SHAPE)), "dataset": str(dataset), "output": "by each run"}
    values |= {
        "max_steps": 2,
        "global_batch_size": 32,
        "micro_batch_size": 16,
        "validation_interval": 0,
        "trackers": [],
    }
    (folder / "run.yaml").write_text(yaml.safe_dump(values))
    return folder / "run.yaml"


@pytest.fixture(scope="module")
def measure(config, measuring_server):
    """What each rank of a run holds, as the server has it."""

    def measure(ranks, output, arguments):
        printed, memory = output.with_suffix(".txt"), output.with_suffix(".json")
        command = ["launch", config, f"output={output}", *arguments]
        assert measuring_server.run(ranks, printed, command, memory=str(memory)) == [0] * ranks, printed.read_text()
        return json.loads(memory.read_text())

    return measure


@pytest.mark.slow
@pytest.mark.parametrize(("engine", "method"), EVERY if os.environ.get("ALL_CELLS") else CHOSEN)
def test_the_plan_is_within_a_tenth_of_what_a_run_takes(config, measure, tmp_path, engine, method):
    ranks, chosen = ENGINES[engine]
    chosen = [*chosen, f"method={method}"]
    measured = [held["most"] for held in measure(ranks, tmp_path / "run", chosen)]
    arguments = ["plan", str(config), "--processes", str(ranks), "--json", *chosen]
    planned = json.loads(CliRunner().invoke(main, arguments).stdout)["memory"]["total_bytes"]
    print(f"{engine}, {method}: {planned >> 20} MiB planned, {[size >> 20 for size in measured]} measured")
    for size in measured:
        assert planned == pytest.approx(size, rel=0.1)
