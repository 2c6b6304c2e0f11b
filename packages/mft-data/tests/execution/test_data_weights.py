"""The weights of records: a column where some record has one, and no trace of it where none has."""

import numpy as np
import orjson
import pytest
from streaming import LocalDataset

from mft_data.dataset.mds import encode_sample, num_segments_of

pytestmark = pytest.mark.usefixtures("small_chunks")


def weighted(helpers, number):
    """A record, of which every third weighs `number` halves and the rest says nothing of it."""
    return helpers.record(number) | ({"weight": (number + 1) / 2} if number % 3 == 0 else {})


def weights_of(dataset, helpers, tokenizer):
    """The weight of each conversation of a task by its number, as the streaming library reads it."""
    found = {}
    for split in ("train", "validation"):
        rows = LocalDataset(str(dataset / split / "t"))
        for row in (rows[position] for position in range(len(rows))):
            assert row["segment_weights"].dtype == np.float32
            assert len(row["segment_weights"]) == len(row["segment_lengths"])
            borders = np.cumsum(row["segment_lengths"])[:-1]
            for ids, weight in zip(np.split(row["input_ids"], borders), row["segment_weights"].tolist(), strict=True):
                number = int(tokenizer.decode(ids).split("add ")[1].split("\n")[0])
                found[number] = weight
    return found


@pytest.mark.parametrize("fraction", ["0.1", "0.0001"])
def test_weights_go_with_their_conversations(run, write_task, tmp_path, helpers, families, fraction):
    # With the smaller fraction one conversation is moved to validation at the end.
    write_task("t", [weighted(helpers, number) for number in range(400)])
    write_task("u", [helpers.record(1)])
    run("build", "t", "u", "out", "--validation", fraction, "--workers", "1")
    found = weights_of(tmp_path / "out", helpers, families["byte_level"].tokenizer)
    assert found == {number: (number + 1) / 2 if number % 3 == 0 else 1.0 for number in range(400)}
    assert LocalDataset(str(tmp_path / "out" / "train" / "u"))[0]["segment_weights"].tolist() == [1.0]
    manifest = orjson.loads((tmp_path / "out" / "manifest.json").read_bytes())
    assert (manifest["format_version"], manifest["features"]) == ("2", ["segment_weights"])
    assert manifest["columns"]["segment_weights"] == "ndarray:float32"
    run("verify", "out")
    run("inspect", "out")
    shown = run("inspect", "out", "--task", "t", "--row", "0").stdout
    assert ", weight " in shown
    for part in (1, 2):
        run("build", "t", "u", f"part{part}", "--validation", fraction, "--part", f"{part}/2")
    run("join", "part1", "part2", "joined")
    assert helpers.tree(tmp_path / "joined") == helpers.tree(tmp_path / "out")


def test_without_weights_the_format_is_that_of_old(run, write_task, tmp_path, helpers):
    write_task("t", [helpers.record(number) | {"weight": 1} for number in range(30)])
    run("build", "t", "out")
    manifest = orjson.loads((tmp_path / "out" / "manifest.json").read_bytes())
    assert manifest["format_version"] == "1"
    assert "features" not in manifest
    assert "segment_weights" not in manifest["columns"]


@pytest.mark.parametrize("weight", [0, -1, True, "2", 1e9, [1]])
def test_what_is_no_weight_is_refused(run, write_task, helpers, weight):
    write_task("t", [helpers.record(1) | {"weight": weight}])
    error = run("build", "t", "out", exit_code=1).stderr
    assert 'field "weight" is no number from 1e-06 to 1e+06, in t/part.jsonl line 1' in error


def test_a_dataset_with_unknown_features_is_refused(run, write_task, tmp_path, helpers):
    write_task("t", [helpers.record(1)])
    run("build", "t", "out")
    path = tmp_path / "out" / "manifest.json"
    path.write_bytes(orjson.dumps({**orjson.loads(path.read_bytes()), "format_version": "2", "features": ["pairs"]}))
    assert "the feature 'pairs' is unknown" in run("inspect", "out", exit_code=1).stderr


@pytest.mark.parametrize("num_segments", [1, 255, 256, 70_000])
def test_segments_are_counted_in_a_sample(num_segments):
    ones = np.ones(num_segments, np.uint16)
    sample = encode_sample(ones, ones.astype(np.uint8), ones.astype(np.uint32), 5)
    assert num_segments_of(sample) == num_segments
