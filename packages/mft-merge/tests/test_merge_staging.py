"""A merge that is killed leaves what a later one finds: it is removed, or gone on with to the same bytes."""

import fcntl
import json
import os
import shutil
import signal
import time
from pathlib import Path

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from mft_merge.output.staging import staging_dir

NUM_KILLS = 20
SIZES = {"hidden_size": 256, "intermediate_size": 512, "num_attention_heads": 4, "num_key_value_heads": 2}


@pytest.fixture(scope="module")
def adapter(tmp_path_factory, make_adapter) -> Path:
    """An adapter of a base of 17 MB in about twenty shards."""
    folder = tmp_path_factory.mktemp("job")
    torch.manual_seed(0)
    model = LlamaForCausalLM(LlamaConfig(vocab_size=258, num_hidden_layers=6, **SIZES))
    model.save_pretrained(folder / "base", max_shard_size="900KB")
    return make_adapter(folder / "base", folder / "adapter", target_modules="all-linear")


@pytest.fixture(scope="module")
def merged(adapter, run_merge) -> dict[str, bytes]:
    """The files of the merge that nothing disturbed."""
    assert run_merge(adapter, adapter.parent / "merged").exit_code == 0
    return files_of(adapter.parent / "merged")


def files_of(directory: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in directory.iterdir()}


def start(run_merge, *arguments) -> int:
    """The id of a process of its own that merges."""
    process_id = os.fork()
    if process_id == 0:
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, 1)
        os.dup2(null, 2)
        os._exit(run_merge(*arguments).exit_code)
    return process_id


def kill(process_id: int) -> None:
    os.kill(process_id, signal.SIGKILL)
    os.waitpid(process_id, 0)


def killed_after(num_shards: int, run_merge, *arguments) -> list[str]:
    """Kill a merge once some shards are finished; returns the names of those that are."""
    out = arguments[1]
    record = staging_dir(out) / "shards.jsonl"
    process_id = start(run_merge, *arguments)
    while not record.exists() or record.read_bytes().count(b"\n") < num_shards:
        assert os.waitpid(process_id, os.WNOHANG) == (0, 0), "it ended before it could be killed"
    kill(process_id)
    return [json.loads(line)["shard"] for line in record.read_bytes().split(b"\n")[:-1]]


@pytest.mark.slow
def test_twenty_kills_and_then_the_same_bytes(adapter, merged, run_merge, tmp_path):
    began = time.monotonic()
    assert run_merge(adapter, tmp_path / "timed").exit_code == 0
    seconds = time.monotonic() - began
    for index in range(NUM_KILLS):
        process_id = start(run_merge, adapter, tmp_path / "out", "--resume")
        time.sleep(seconds * index / NUM_KILLS)
        kill(process_id)
        assert not (tmp_path / "out").exists() or files_of(tmp_path / "out") == merged
    result = run_merge(adapter, tmp_path / "out", "--resume")
    assert result.exit_code == 0, result.output
    assert files_of(tmp_path / "out") == merged
    assert not staging_dir(tmp_path / "out").exists()


def test_finished_shards_are_kept_and_broken_ones_are_not(adapter, merged, run_merge, tmp_path):
    out = tmp_path / "out"
    finished = killed_after(3, run_merge, adapter, out)
    model_dir = staging_dir(out) / "model"
    broken, kept = model_dir / finished[0], model_dir / finished[1]
    content = bytearray(broken.read_bytes())
    content[-1] ^= 1
    broken.write_bytes(content)
    inodes = broken.stat().st_ino, kept.stat().st_ino
    result = run_merge(adapter, out, "--resume")
    assert result.exit_code == 0, result.output
    assert f"{len(finished) - 1} of " in result.stderr
    assert files_of(out) == merged
    assert (out / broken.name).stat().st_ino != inodes[0]
    assert (out / kept.name).stat().st_ino == inodes[1]


def test_without_resume_the_leftover_is_removed(adapter, merged, run_merge, tmp_path):
    killed_after(1, run_merge, adapter, tmp_path / "out")
    result = run_merge(adapter, tmp_path / "out")
    assert result.exit_code == 0
    assert "note: an unfinished merge is removed" in result.stderr
    assert files_of(tmp_path / "out") == merged
    assert not staging_dir(tmp_path / "out").exists()


def test_another_merge_is_not_gone_on_with(adapter, run_merge, tmp_path):
    killed_after(1, run_merge, adapter, tmp_path / "out")
    result = run_merge(adapter, tmp_path / "out", "--resume", "--dtype", "bfloat16")
    assert result.exit_code == 1
    assert "the unfinished merge had another dtype" in result.stderr
    assert staging_dir(tmp_path / "out").exists()


def test_two_merges_do_not_write_one_output(adapter, run_merge, tmp_path):
    staging = staging_dir(tmp_path / "out")
    staging.mkdir()
    descriptor = os.open(staging, os.O_RDONLY)
    fcntl.flock(descriptor, fcntl.LOCK_EX)
    result = run_merge(adapter, tmp_path / "out")
    os.close(descriptor)
    assert result.exit_code == 1
    assert "another mft-merge is writing" in result.stderr


def test_what_mft_merge_did_not_leave_is_not_touched(adapter, run_merge, tmp_path):
    (staging_dir(tmp_path / "out")).mkdir()
    (staging_dir(tmp_path / "out") / "thesis.txt").write_text("years of work")
    result = run_merge(adapter, tmp_path / "out")
    assert result.exit_code == 1
    assert "is not what mft-merge left there" in result.stderr
    assert (staging_dir(tmp_path / "out") / "thesis.txt").exists()


def test_a_kill_between_the_two_renames_of_an_exchange_loses_nothing(adapter, merged, run_merge, tmp_path):
    out, staging = tmp_path / "out", staging_dir(tmp_path / "out")
    assert run_merge(adapter, out).exit_code == 0
    (out / "mine.txt").write_text("mine")
    (staging / "model").mkdir(parents=True)
    (staging / "job.json").write_text("{}")
    out.rename(staging / "old")
    assert "is not empty" in run_merge(adapter, out).stderr
    (out / "mine.txt").unlink()
    assert run_merge(adapter, out, "--overwrite").exit_code == 0
    assert files_of(out) == merged


def test_resuming_what_is_finished_does_nothing(adapter, merged, run_merge, tmp_path):
    for _ in range(2):
        result = run_merge(adapter, tmp_path / "out", "--resume")
        assert result.exit_code == 0
        assert result.stdout == f"{tmp_path / 'out'}\n"
    assert files_of(tmp_path / "out") == merged


def test_a_failure_after_finished_shards_names_where_they_lie(adapter, run_merge, tmp_path):
    base = tmp_path / "base"
    shutil.copytree(adapter.parent / "base", base)
    shards = sorted(base.glob("*.safetensors"))
    (tmp_path / "gone").mkdir()
    process_id = start(run_merge, adapter, tmp_path / "out", "--base", base)
    while not (staging_dir(tmp_path / "out") / "shards.jsonl").exists():
        assert os.waitpid(process_id, os.WNOHANG) == (0, 0)
    shards[-1].rename(tmp_path / "gone" / shards[-1].name)
    _, status = os.waitpid(process_id, 0)
    assert os.waitstatus_to_exitcode(status) == 1
    assert len(list((staging_dir(tmp_path / "out") / "model").glob("*.safetensors"))) > 0


def test_a_merge_that_does_not_fit_on_the_disk_is_refused_first(adapter, run_merge, tmp_path):
    """The base gets a tensor of holes that is larger than what is free."""
    free = shutil.disk_usage(tmp_path).free + 10**9
    base = tmp_path / "base"
    shutil.copytree(adapter.parent / "base", base)
    index = json.loads((base / "model.safetensors.index.json").read_text())
    index["weight_map"]["huge"] = "huge.safetensors"
    (base / "model.safetensors.index.json").write_text(json.dumps(index))
    header = json.dumps({"huge": {"dtype": "BF16", "shape": [free // 2], "data_offsets": [0, free // 2 * 2]}}).encode()
    with (base / "huge.safetensors").open("wb") as stream:
        stream.write(len(header).to_bytes(8, "little") + header)
        stream.truncate(8 + len(header) + free // 2 * 2)
    result = run_merge(adapter, tmp_path / "out", "--base", base)
    assert result.exit_code == 1
    assert "GB are free" in result.stderr
    assert not (tmp_path / "out").exists()
    assert not staging_dir(tmp_path / "out").exists()
