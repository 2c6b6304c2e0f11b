"""A dataset to damage, in ways that a copy or a faulty build might, for the tests of verify."""

import hashlib
import shutil
from contextlib import contextmanager
from types import SimpleNamespace

import numpy as np
import orjson
import pytest
from click.testing import CliRunner

from mft_data.cli import main
from mft_data.dataset.fingerprints import manifest_bytes
from mft_data.dataset.mds import ShardWriter, encode_sample, mds_columns, read_row

LIMIT = 64
SHARD = "train/code/shard.00000.mds"
INDEX = "train/code/index.json"


def run(*arguments, exit_code=0):
    """The result of a command that has to end with `exit_code`."""
    result = CliRunner().invoke(main, [str(argument) for argument in arguments])
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    assert result.exit_code == exit_code, result.output
    return result


def build(folder, tokenizer_dir):
    """Builds `folder / "dataset"`: two tasks with both splits and a reject each, one task without validation rows."""
    for task, numbers in (("code", range(30)), ("sql", range(12)), ("text", range(1))):
        (folder / task).mkdir()
        rounds = [
            [{"role": "human", "content": f"add {task}{n}"}, {"role": "bot", "content": f"sum {n} " * (1 + n % 5)}]
            for n in numbers
        ]
        lines = [orjson.dumps({"chat_rounds": chat_rounds}) for chat_rounds in [*rounds, [] if len(rounds) > 1 else 0]]
        (folder / task / "part.jsonl").write_bytes(b"\n".join(lines))
    sources = [folder / task for task in ("code", "sql", "text")]
    options = ("--seq-length", LIMIT, "--validation", "0.2", "--max-rejects", "3")
    run("build", *sources, folder / "dataset", "--tokenizer", tokenizer_dir, *options)
    return folder / "dataset"


@pytest.fixture(scope="module")
def built(tmp_path_factory, tokenizer_dir):
    """The dataset that no test changes."""
    return build(tmp_path_factory.mktemp("built"), tokenizer_dir)


@pytest.fixture
def dataset(built, tmp_path):
    """A copy to damage."""
    shutil.copytree(built, tmp_path / "dataset")
    return tmp_path / "dataset"


def verified_files(dataset):
    """Every file of the dataset."""
    return sorted(path for path in dataset.rglob("*") if path.is_file())


def problems(dataset, *options):
    """The lines that verify prints about a damaged dataset, without `Error: ` and with paths from the dataset."""
    result = run("verify", dataset, *options, exit_code=1)
    assert result.stdout == ""
    lines = result.stderr.splitlines()
    assert all(line.startswith("Error: ") for line in lines)
    return [line.removeprefix("Error: ").replace(f"{dataset}/", "").replace(str(dataset), "") for line in lines]


@contextmanager
def changed_manifest(dataset):
    """The manifest, to be changed in the block and then sealed as if it had been built so."""
    path = dataset / "manifest.json"
    manifest = orjson.loads(path.read_bytes())
    yield manifest
    path.write_bytes(manifest_bytes(manifest))


@contextmanager
def changed_json(path):
    """The contents of a JSON file, to be changed in the block."""
    content = orjson.loads(path.read_bytes())
    yield content
    path.write_bytes(orjson.dumps(content))


def seal(dataset):
    """Makes the manifest's sums those of the indexes, as if they had been built so."""
    with changed_manifest(dataset) as manifest:
        for task in manifest["tasks"]:
            for split, counts in task["splits"].items():
                index_path = dataset / split / task["name"] / "index.json"
                if index_path.exists():
                    counts["index_sha256"] = hashlib.sha256(index_path.read_bytes()).hexdigest()


def write_rows(dataset, change, ids_dtype="uint16"):
    """Writes the rows of train/code anew, each of them first changed, as a faulty build would have."""
    stream_dir = dataset / "train" / "code"
    manifest = orjson.loads((dataset / "manifest.json").read_bytes())
    counts = manifest["tasks"][0]["splits"]["train"]
    rows = [read_row(stream_dir, row) for row in range(counts["rows"])]
    shutil.rmtree(stream_dir)
    writer = ShardWriter(stream_dir, mds_columns(ids_dtype))
    for number, row in enumerate(rows):
        row = {name: np.array(values) for name, values in row.items()}
        row["input_ids"] = row["input_ids"].astype(ids_dtype)
        change(number, row)
        writer.write(encode_sample(row["input_ids"], row["loss_mask"], row["segment_lengths"], int(row["task_id"])))
    writer.finish()
    seal(dataset)


@pytest.fixture(scope="module")
def shared_copy(built, tmp_path_factory):
    """A copy for tests that put back what they damage."""
    copy = tmp_path_factory.mktemp("shared") / "dataset"
    shutil.copytree(built, copy)
    return copy


@pytest.fixture(scope="session")
def helpers():
    """The functions of this file."""
    return SimpleNamespace(
        run=run,
        build=build,
        verified_files=verified_files,
        problems=problems,
        changed_manifest=changed_manifest,
        changed_json=changed_json,
        seal=seal,
        write_rows=write_rows,
    )
