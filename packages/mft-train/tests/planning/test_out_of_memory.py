"""Failed allocations of the real allocators end as one line with advice."""

from pathlib import Path

import pytest
import torch
import yaml
from click.testing import CliRunner

from mft_train.cli import main
from mft_train.config.config import RunConfig
from mft_train.errors import TrainError
from mft_train.model.load import loading
from mft_train.planning.out_of_memory import advice, memory_advice

FAR_TOO_MANY = 10**15


def torch_bytes():
    return torch.empty(FAR_TOO_MANY, dtype=torch.uint8)


def numpy_bytes():
    import numpy as np

    return np.empty(FAR_TOO_MANY, dtype=np.uint8)


def mapped_bytes():
    import mmap

    return mmap.mmap(-1, FAR_TOO_MANY)


def config(**settings):
    return RunConfig(model="m", dataset="d", output="o", max_steps=1, **settings)


@pytest.mark.parametrize("allocate", [torch_bytes, numpy_bytes, mapped_bytes, lambda: bytearray(FAR_TOO_MANY)])
def test_every_allocator_s_failure_is_an_error_with_advice_also_while_a_model_is_loaded(allocate):
    with pytest.raises(TrainError, match=r"out of memory.*set in this order"), memory_advice(config()), loading("m"):
        allocate()


def test_the_amount_is_told():
    with (
        pytest.raises(TrainError, match=r"out of memory: 931,322\.57 GiB more could not be had"),
        memory_advice(config()),
    ):
        torch_bytes()


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_the_failure_of_cuda_s_allocator_is_an_error_with_advice():

    with pytest.raises(TrainError, match=r"out of memory: [\d.]+ .iB more could not be had"), memory_advice(config()):
        torch.empty(2**42, dtype=torch.uint8, device="cuda")


def test_other_errors_pass():
    with pytest.raises(RuntimeError, match="shape"), memory_advice(config()):
        raise RuntimeError("shape mismatch")
    with pytest.raises(FileNotFoundError), memory_advice(config()):
        Path("/nowhere/at/all").read_bytes()


@pytest.mark.parametrize(
    ("settings", "steps"),
    [
        (
            {"micro_batch_size": 4, "global_batch_size": 4},
            ["micro_batch_size: 1", "gradient_checkpointing: true", "rows"],
        ),
        ({"gradient_checkpointing": True, "lora": {"rank": 64}}, ["a smaller lora.rank", "rows"]),
        ({"method": "full"}, ["gradient_checkpointing: true", "optimizer: adamw_8bit", "method: lora", "rows"]),
        ({"method": "full", "optimizer": "adamw_8bit", "gradient_checkpointing": True}, ["method: lora", "rows"]),
    ],
)
def test_the_advice_follows_the_config_cheapest_first(settings, steps):
    text = advice(config(**settings))
    every = ["micro_batch_size: 1", "gradient_checkpointing: true", "optimizer: adamw_8bit", "method: lora"]
    every += ["a smaller lora.rank", "rows"]
    assert [step for step in every if step in text] == steps
    assert [text.index(step) for step in steps] == sorted(text.index(step) for step in steps)


def test_a_run_that_does_not_fit_ends_with_one_line(tmp_path, tiny_model, tiny_dataset):
    path = tmp_path / "run.yaml"
    values = {"model": str(tiny_model), "dataset": str(tiny_dataset), "output": str(tmp_path / "run"), "max_steps": 1}
    path.write_text(yaml.safe_dump(values | {"lora": {"rank": FAR_TOO_MANY}}))
    result = CliRunner().invoke(main, ["launch", str(path)])
    assert result.exit_code == 1
    assert isinstance(result.exception, SystemExit)
    assert "Error: out of memory" in result.stderr
    assert "a smaller lora.rank" in result.stderr
