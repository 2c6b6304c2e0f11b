"""Datasets in a store: an S3 API on loopback that fails, stalls, cuts off and lies."""

import contextlib
import functools
import gc
import importlib.util
import itertools
import json
import os
import shutil
from pathlib import Path

import pytest
import yaml
from click.testing import CliRunner

from mft_train.cli import main
from mft_train.errors import TrainError
from mft_train.rows import remote
from mft_train.rows.dataset_dir import open_dataset
from mft_train.rows.remote import Cache

pytest.importorskip("moto.server", reason="needs moto's server")
BUCKET = "rows"


@pytest.fixture(scope="module")
def faulty_proxy():
    spec = importlib.util.spec_from_file_location("faulty_proxy", Path(__file__).with_name("faulty_proxy.py"))
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.FaultyProxy


@pytest.fixture(scope="module")
def dataset(tmp_path_factory, make_dataset):
    """Several shards a task, so that some can be let go of."""
    path = tmp_path_factory.mktemp("remote") / "dataset"
    return make_dataset(path, {"large": (40, 4), "small": (12, 2)}, seq_length=48, shard_bytes=1500)


@pytest.fixture(scope="module")
def server(dataset):
    """The port of an S3 server that holds the dataset."""
    import boto3
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0)
    server.start()
    _, port = server.get_host_and_port()
    with pytest.MonkeyPatch.context() as patch:
        for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
            patch.setenv(name, "testing")
        client = boto3.client("s3", endpoint_url=f"http://127.0.0.1:{port}", region_name="us-east-1")
        client.create_bucket(Bucket=BUCKET)
        for path in sorted(dataset.rglob("*")):
            if path.is_file():
                client.upload_file(str(path), BUCKET, f"data/{path.relative_to(dataset)}")
        yield port
    server.stop()


@pytest.fixture
def proxy(server, faulty_proxy, monkeypatch):
    """A proxy before the server, which streaming's downloader is sent to."""
    proxy = faulty_proxy(server)
    settings = {"AWS_ACCESS_KEY_ID": "testing", "AWS_SECRET_ACCESS_KEY": "testing", "AWS_DEFAULT_REGION": "us-east-1"}
    settings |= {"S3_ENDPOINT_URL": proxy.url, "AWS_EC2_METADATA_DISABLED": "true", "NO_PROXY": "127.0.0.1"}
    for name, value in settings.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(remote, "FIRST_WAIT_SECONDS", 0.01)
    yield proxy
    remote.OPEN.__dict__.clear()
    proxy.close()


@pytest.fixture
def cache(tmp_path):
    return Cache(tmp_path / "cache", None, timeout_seconds=1.0)


def opened(cache):
    return open_dataset(f"s3://{BUCKET}/data", cache)


def cached(dataset):
    files = (path for path in dataset.path.rglob("*") if path.is_file() and path.name != ".lock")
    return {str(path.relative_to(dataset.path)): path.read_bytes() for path in files}


def wanted(dataset, *endings):
    """The files of the dataset directory that are fetched at the start."""
    found = {str(path.relative_to(dataset)): path for path in dataset.rglob("*") if path.is_file()}
    kept = {name: path for name, path in found.items() if name.startswith(("tokenizer/", "validation/"))}
    kept |= {name: path for name, path in found.items() if name.endswith("index.json")}
    return {name: path.read_bytes() for name, path in kept.items()}


def test_manifest_tokenizer_and_validation_rows_are_fetched_once_a_machine(dataset, proxy, cache):
    first, second = opened(cache), opened(cache)
    assert first == second
    assert first.path.name == first.manifest_sha256 == open_dataset(str(dataset)).manifest_sha256
    assert cached(first) == wanted(dataset)
    assert set(proxy.served.values()) == {1}


@pytest.mark.parametrize("fault", ["error", "stall", "truncate", "flip", "short"])
def test_what_fails_once_is_fetched_again(dataset, proxy, cache, fault):
    names = ("manifest.json", "tokenizer.json", "validation/large/index.json", "validation/small/shard.00000.mds")
    proxy.faults = {name: [fault] for name in names}
    assert cached(opened(cache)) == wanted(dataset)
    assert not any(proxy.faults.values())


@pytest.mark.parametrize("name", ["manifest.json", "tokenizer.json", "index.json", "shard.00000.mds"])
def test_other_bytes_are_one_clear_line_and_never_kept(proxy, cache, name):
    proxy.faults = {name: ["flip", "..."]}
    with pytest.raises(TrainError, match=rf"^s3://rows/data/\S*{name} cannot be fetched: its bytes are not those"):
        opened(cache)
    assert not list(cache.directory.rglob(name))
    assert not list(cache.directory.rglob(".fetch-*"))


def test_a_place_without_a_dataset_and_an_unknown_store_are_told(proxy, cache):
    with pytest.raises(TrainError, match=r"^s3://rows/nothing/manifest.json cannot be fetched: "):
        open_dataset(f"s3://{BUCKET}/nothing", cache)
    with pytest.raises(TrainError, match=r'^dataset "ftp://host/data" is in no store that is known, give a directory'):
        open_dataset("ftp://host/data", cache)


def test_a_file_that_a_crash_cut_off_is_fetched_again(dataset, proxy, cache):
    path = opened(cache).path / "validation" / "small" / "shard.00000.mds"
    path.write_bytes(path.read_bytes()[:-7])
    assert cached(opened(cache)) == wanted(dataset)


@pytest.fixture(scope="module")
def commands(start_server, tmp_path_factory):
    return start_server("commands", tmp_path_factory.mktemp("commands") / "log")


def train(commands, folder, model, location, name, *arguments, **settings):
    """Trains in a process of its own, with this one's variables; its exit code, what it prints, and the events."""
    run_dir = folder / name
    values = {"model": str(model), "dataset": str(location), "output": str(run_dir), "max_steps": 16}
    values |= {"global_batch_size": 4, "learning_rate": 0.01, "validation_interval": 5, "trackers": []}
    values |= {"cache": {"directory": str(folder / "cache"), "timeout_seconds": 1.0}, "checkpoint_interval": 0}
    path = folder / f"{name}.yaml"
    path.write_text(yaml.safe_dump(values | settings))
    commands.start(path, *arguments, **os.environ)
    code, told = commands.wait(), commands.log.read_text()
    metrics = run_dir / "metrics.jsonl"
    events = [json.loads(line) for line in metrics.read_text().splitlines()] if metrics.is_file() else []
    return code, told, [(event["loss"], event["task_losses"]) for event in events if "loss" in event]


@pytest.fixture
def launch(commands, tmp_path, tiny_model, proxy):
    return functools.partial(train, commands, tmp_path, tiny_model)


@pytest.fixture(scope="module")
def expected(commands, tmp_path_factory, tiny_model, dataset):
    """The losses of the run on local files."""
    code, told, losses = train(commands, tmp_path_factory.mktemp("local"), tiny_model, dataset, "local")
    assert code == 0, told
    return losses


@pytest.mark.slow
def test_a_run_from_a_faulty_store_has_the_losses_of_a_local_one_within_its_cache(
    dataset, proxy, launch, expected, tmp_path
):
    faults = ["flip", "truncate", "error", "short"]
    names = [str(path.relative_to(dataset)) for path in sorted(dataset.glob("train/large/shard.*"))]
    assert len(names) > 4
    proxy.faults = {name: [faults[index % 4]] for index, name in enumerate(names)} | {"manifest.json": ["stall"]}
    directory = tmp_path / "cache"
    limit = least_limit(dataset)
    watched = Watch(directory)
    code, told, losses = launch(
        f"s3://{BUCKET}/data",
        "remote",
        cache={"directory": str(directory), "timeout_seconds": 1.0, "limit": limit},
    )
    most = watched.stop()
    assert code == 0, told
    assert losses == expected
    assert not any(proxy.faults.values())
    assert 0 < most <= limit
    assert proxy.count("train/large/shard.00000.mds") > 1, "nothing was let go of: the limit was never reached"


@pytest.mark.slow
def test_two_ranks_share_what_is_fetched_and_one_goes_on_elsewhere(dataset, proxy, launch, expected, tmp_path):
    """Two ranks of a machine, with faults; then another machine, whose cache is empty, resumes as one rank."""
    names = [str(path.relative_to(dataset)) for path in sorted(dataset.glob("train/*/shard.*"))]
    proxy.faults = {name: [fault] for name, fault in zip(names, itertools.cycle(["flip", "error", "short"]))}
    location = f"s3://{BUCKET}/data"
    code, told, losses = launch(location, "run", "--processes", "2", checkpoint_interval=8)
    assert code == 0, told
    assert_same_curve(losses, expected)
    assert not any(proxy.faults.values())
    # Once for both ranks, and once more for each fault.
    assert {name: proxy.count(name) for name in names} == dict.fromkeys(names, 2)
    assert {proxy.count(name) for name in ("manifest.json", *wanted(dataset))} == {1}

    shutil.rmtree(tmp_path / "cache")
    shutil.rmtree(tmp_path / "run" / "final")
    shutil.rmtree(tmp_path / "run" / "checkpoints" / "step-00000016")
    code, told, losses = launch(location, "run", "--resume", checkpoint_interval=8)
    assert code == 0, told
    assert_same_curve(losses, expected)
    assert {proxy.count(name) for name in wanted(dataset)} == {2}


def assert_same_curve(losses, expected):
    """Of another number of ranks: sums are rounded otherwise."""
    assert [loss for loss, _ in losses] == pytest.approx([loss for loss, _ in expected], rel=1e-5)


@pytest.mark.slow
def test_a_shard_that_stays_wrong_ends_the_run_with_one_line(proxy, launch, tmp_path):
    proxy.faults = {"train/large/shard.00003.mds": ["flip", "..."]}
    code, told, _ = launch(f"s3://{BUCKET}/data", "wrong")
    assert code == 1
    (line,) = (line for line in told.splitlines() if line.startswith("Error: "))
    assert line.startswith("Error: s3://rows/data/train/large/shard.00003.mds cannot be fetched: its bytes are not")
    assert "Traceback" not in told
    assert not (tmp_path / "wrong" / "final").exists()
    assert not list((tmp_path / "cache").rglob("train/large/shard.00003.mds"))


def test_a_limit_without_room_says_how_much_is_needed(dataset, proxy, write_run, tmp_path):
    cache = {"directory": str(tmp_path / "cache"), "limit": "1kb"}
    path = write_run(dataset=f"s3://{BUCKET}/data", max_steps=1, cache=cache)
    result = CliRunner().invoke(main, ["launch", str(path)])
    gc.collect()
    assert result.exit_code == 1
    assert f"cache.limit 1024 bytes is too low for this dataset, set it to {least_limit(dataset)} bytes or more" in (
        result.stderr
    )


def least_limit(dataset: Path) -> int:
    """Bytes of what is fetched at the start, and of four of the largest training shards."""
    fixed = sum(len(content) for content in wanted(dataset).values())
    return fixed + 4 * max(path.stat().st_size for path in dataset.glob("train/*/shard.*"))


class Watch:
    """The most bytes that a folder's dataset has held, looked at all the time."""

    def __init__(self, directory: Path):
        import threading

        self.directory, self.most, self.is_over = directory, 0, threading.Event()
        self.thread = threading.Thread(target=self.look)
        self.thread.start()

    def look(self):
        while not self.is_over.wait(0.002):
            with contextlib.suppress(FileNotFoundError):  # a folder was let go of meanwhile: look again
                paths = list(self.directory.glob("*/**/*"))
                kept = [path for path in paths if path.parent.name not in ("manifests", ".lock") and path.is_file()]
                self.most = max(self.most, sum(size_of(path) for path in kept))

    def stop(self) -> int:
        self.is_over.set()
        self.thread.join()
        return self.most


def size_of(path: Path) -> int:
    try:
        return path.stat().st_size
    except FileNotFoundError:  # let go of meanwhile
        return 0
