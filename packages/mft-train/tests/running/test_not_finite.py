"""A loss or gradient that is not finite stops the run and names the rows, with real damaged weights."""

import numpy as np
import pytest
import yaml
from click.testing import CliRunner

from mft_train.cli import main
from mft_train.rows.dataset_dir import open_dataset

ALL_ROWS = 30  # the dataset has 29


@pytest.fixture
def config(tmp_path, tiny_model, tiny_dataset):
    """A run of one step over every row, of the model with `change` made to its weights."""
    import torch
    from transformers import AutoModelForCausalLM

    def config(change, **settings):
        model = AutoModelForCausalLM.from_pretrained(tiny_model)
        with torch.no_grad():
            change(model)
        model.save_pretrained(tmp_path / "damaged")
        values = {"model": str(tmp_path / "damaged"), "dataset": str(tiny_dataset), "output": str(tmp_path / "run")}
        values |= {"max_steps": 1, "global_batch_size": ALL_ROWS, "trackers": []}
        path = tmp_path / "run.yaml"
        path.write_text(yaml.safe_dump(values | settings))
        return path

    return config


def is_spoilt(sample, token_id):
    """Whether a token comes before a supervised one of the same conversation."""
    borders = np.cumsum(sample["segment_lengths"])[:-1]
    pairs = zip(np.split(sample["input_ids"], borders), np.split(sample["loss_mask"], borders), strict=True)
    return any(np.any(np.cumsum(ids == token_id)[:-1] & (mask[1:] > 0)) for ids, mask in pairs)


@pytest.fixture(scope="module")
def rare_token(tiny_dataset):
    """A token that spoils few rows, and those rows; not one of those that the check of isolation happens to use."""
    from streaming import LocalDataset

    dataset = open_dataset(str(tiny_dataset))
    streams = {task.name: LocalDataset(local=str(dataset.split_dir("train", task))) for task in dataset.tasks}
    tested = np.random.default_rng(0).integers(0, 97, size=24)
    rows = {
        token_id: [
            f"{name} {index}"
            for name, stream in streams.items()
            for index in range(len(stream))
            if is_spoilt(stream[index], token_id)
        ]
        for token_id in sorted({*range(97)} - {*tested.tolist()})
    }
    return min(((token_id, found) for token_id, found in rows.items() if len(found) >= 2), key=lambda x: len(x[1]))


def poison(token_id):
    def change(model):
        model.get_input_embeddings().weight[token_id] = float("nan")

    return change


@pytest.mark.parametrize("micro_batch_size", [1, 5])
def test_the_rows_with_a_spoilt_token_are_named_and_no_weight_is_changed(
    config, tmp_path, tiny_dataset, rare_token, micro_batch_size
):
    token_id, rows = rare_token
    path = config(poison(token_id), micro_batch_size=micro_batch_size, checkpoint_interval=1)
    result = CliRunner().invoke(main, ["launch", str(path)])
    assert result.exit_code == 1
    (error,) = [line for line in result.stderr.splitlines() if line.startswith("Error: ")]
    assert f"is not finite, because of training rows {', '.join(rows)}, look at them" in error
    task, number = rows[0].split()
    assert f"`mft-data inspect {tiny_dataset} --task {task} --row {number}`" in error
    assert "step 1 stopped before the update: the loss of " in error
    assert not (tmp_path / "run" / "checkpoints").exists()
    assert not (tmp_path / "run" / "final").exists()


@pytest.mark.slow
def test_two_processes_name_the_rows_of_both(config, rare_token, start_server, tmp_path):
    token_id, rows = rare_token
    server = start_server("commands", tmp_path / "log")
    server.start(config(poison(token_id)), "--processes", "2")
    assert server.wait() == 1
    assert f"because of training rows {', '.join(rows)}, look at them" in server.log.read_text()


def test_a_gradient_that_overflows_has_the_rows_of_its_step(config):
    def change(model):
        model.lm_head.weight *= 1e25

    result = CliRunner().invoke(main, ["launch", str(config(change, method="full"))])
    assert result.exit_code == 1
    (error,) = [line for line in result.stderr.splitlines() if line.startswith("Error: ")]
    assert (
        "the gradient norm inf is not finite, no row alone is to blame, the training rows are large 0, large 1,"
        in error
    )
    assert "and 21 more" in error


def test_a_model_that_is_spoilt_as_a_whole_is_found_before_the_first_step(config):
    def change(model):
        model.lm_head.weight[0, 0] = float("inf")

    result = CliRunner().invoke(main, ["launch", str(config(change))])
    assert result.exit_code == 1
    assert "the model's logits are not finite" in result.stderr
