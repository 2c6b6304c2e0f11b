"""--verify runs the live model and the merged one, and does not let a wrong merge pass."""

import json
import shutil
import subprocess
import sys

import pytest
from safetensors.torch import load_file, save_file
from transformers import LlamaConfig, LlamaForCausalLM

from mft_merge.errors import MergeError
from mft_merge.planning.changes import stored_changes
from mft_merge.planning.plan import Target, make_plan
from mft_merge.sources.adapter import read_adapter
from mft_merge.sources.base_model import read_base_model
from mft_merge.verification import memory, verify
from mft_merge.verification.live_model import Live


@pytest.fixture
def adapter(base_dir, make_adapter, tmp_path):
    return make_adapter(base_dir("llama", shard_size="30KB"), tmp_path / "adapter")


@pytest.mark.parametrize("is_from_disk", [False, True], ids=["in memory", "from the disk"])
@pytest.mark.parametrize("dtype", ["keep", "bfloat16"])
def test_figures_of_a_right_merge(is_from_disk, dtype, adapter, run_merge, tmp_path, monkeypatch):
    if is_from_disk:
        monkeypatch.setattr(verify, "FORWARD_SHARE", 1e12)
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    result = run_merge(adapter, tmp_path / "out", "--verify", "--json", "--dtype", dtype)
    assert result.exit_code == 0, result.output
    figures = json.loads(result.stdout)["verification"]
    assert figures["is_from_disk"] is is_from_disk
    assert figures["relative_difference"] <= (1e-6 if dtype == "keep" else 0.02)
    assert figures["largest_logit"] > 0.1
    assert "note: verified" in result.stderr
    assert list((tmp_path / "here").iterdir()) == []


def test_a_base_by_a_relative_path_is_not_written_over(base_dir, make_adapter, run_merge, tmp_path, monkeypatch):
    """PEFT writes the files of a base on the disk anew, under their path as a relative one."""
    monkeypatch.setattr(verify, "FORWARD_SHARE", 1e12)
    monkeypatch.chdir(tmp_path)
    shutil.copytree(base_dir("llama"), tmp_path / "base")
    make_adapter(tmp_path / "base", tmp_path / "adapter")
    before = (tmp_path / "base" / "model.safetensors").read_bytes()
    result = run_merge("adapter", "out", "--base", "base", "--verify")
    assert result.exit_code == 0, result.output
    assert (tmp_path / "base" / "model.safetensors").read_bytes() == before
    assert {path.name for path in tmp_path.iterdir()} == {"base", "adapter", "out"}


KINDS = {
    "dora and whole modules": ("llama", {"use_dora": True, "modules_to_save": ["norm"]}),
    "embeddings": ("llama", {"target_modules": ["embed_tokens", "q_proj"]}),
    "trained tokens": ("llama", {"trainable_token_indices": [3, 5]}),
    "a larger vocabulary": ("llama", {"vocab_size": 270}),
    "transposed weights": ("gpt2", {"target_modules": ["c_attn", "c_proj"], "fan_in_fan_out": True, "use_dora": True}),
}


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_adapter_is_verified_from_the_disk(
    kind, base_dir, make_adapter, run_merge, tmp_path, monkeypatch
):
    family, options = KINDS[kind]
    adapter = make_adapter(base_dir(family), tmp_path / "adapter", **options)
    monkeypatch.setattr(verify, "FORWARD_SHARE", 1e12)
    result = run_merge(adapter, tmp_path / "out", "--verify", "--json")
    assert result.exit_code == 0, result.output
    figures = json.loads(result.stdout)["verification"]
    assert figures["is_from_disk"]
    assert figures["relative_difference"] <= 2e-6
    assert not [path for path in tmp_path.rglob("*") if path.name == "weights"]


# Verifies, and prints the most anonymous memory that this took beyond what was there before, in bytes.
MEASURE = """
import json, sys, threading, time
import accelerate, peft, torch, transformers.models.llama.modeling_llama
from mft_merge.cli import main
from mft_merge.verification import verify
torch.set_num_threads(1)
verify.FORWARD_SHARE = float(sys.argv.pop())

def anonymous():
    lines = open("/proc/self/status").read().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("RssAnon"))

before, most, is_done = anonymous(), 0, False
def watch():
    global most
    while not is_done:
        most = max(most, anonymous())
        time.sleep(0.002)
thread = threading.Thread(target=watch)
thread.start()
main(sys.argv[1:], standalone_mode=False)
is_done = True
thread.join()
print(most - before)
"""


@pytest.mark.slow
def test_weights_on_the_disk_take_no_memory(make_adapter, tmp_path):
    sizes = {"hidden_size": 512, "intermediate_size": 1536, "num_attention_heads": 8, "num_key_value_heads": 8}
    base = tmp_path / "base"
    config = LlamaConfig(vocab_size=1000, num_hidden_layers=8, **sizes)
    # Stored in bfloat16, so that no float32 weight can be a page of the base's own file.
    LlamaForCausalLM(config).bfloat16().save_pretrained(base)
    adapter = make_adapter(base, tmp_path / "adapter", target_modules="all-linear", use_dora=True)
    size = 2 * (base / "model.safetensors").stat().st_size
    runs = {}
    for name, share in (("memory", 0), ("disk", 1e12)):
        command = [sys.executable, "-c", MEASURE, adapter, tmp_path / name, "--verify", share]
        runs[name] = subprocess.Popen(list(map(str, command)), stdout=subprocess.PIPE, text=True)
    most = {name: int(process.communicate()[0].splitlines()[-1]) for name, process in runs.items()}
    assert not any(process.returncode for process in runs.values())
    assert size > 100_000_000
    assert most["memory"] > size
    assert most["disk"] < 0.5 * size


def test_a_resized_vocabulary_is_verified(base_dir, make_adapter, run_merge, tmp_path):
    adapter = make_adapter(base_dir("llama"), tmp_path / "adapter", vocab_size=270)
    result = run_merge(adapter, tmp_path / "out", "--verify")
    assert result.exit_code == 0, result.output


@pytest.mark.parametrize(
    ("own_group", "limit", "used"),
    [
        ("0::/", "memory.max", "memory.current"),
        ("0::/a/b", "a/memory.max", "a/memory.current"),
        ("0::/elsewhere", "memory.max", "memory.current"),
        ("4:cpu,memory:/a", "memory/a/memory.limit_in_bytes", "memory/a/memory.usage_in_bytes"),
        ("4:memory:/not/to/be/seen", "memory/memory.limit_in_bytes", "memory/memory.usage_in_bytes"),
    ],
)
def test_the_limit_of_a_container_sends_the_models_to_the_disk(
    own_group, limit, used, adapter, run_merge, tmp_path, monkeypatch
):
    for name, text in ((limit, "1000000\n"), (used, "999000\n"), ("a/b/memory.max", "max\n"), ("own", own_group)):
        (tmp_path / "groups" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "groups" / name).write_text(text)
    monkeypatch.setattr(memory, "CGROUP_DIR", tmp_path / "groups")
    monkeypatch.setattr(memory, "OWN_GROUPS", tmp_path / "groups" / "own")
    assert memory.free_bytes() == 1000
    result = run_merge(adapter, tmp_path / "out", "--verify", "--json")
    assert result.exit_code == 0, result.output
    assert json.loads(result.stdout)["verification"]["is_from_disk"] is True


def test_the_file_cache_of_a_group_is_no_use_of_its_memory(tmp_path, monkeypatch):
    for name, text in (("max", "1000"), ("current", "900"), ("stat", "active_file 7\ninactive_file 600\n")):
        (tmp_path / f"memory.{name}").write_text(text)
    monkeypatch.setattr(memory, "CGROUP_DIR", tmp_path)
    assert memory.free_bytes() == 700


def test_weights_and_several_adapters_are_verified(adapter, base_dir, make_adapter, run_merge, tmp_path, monkeypatch):
    base = base_dir("llama", shard_size="30KB")
    other = make_adapter(base, tmp_path / "other", target_modules=["q_proj", "up_proj"], r=3, seed=2, use_rslora=True)
    half, both = ["--adapter", f"{adapter}=0.5"], ["--adapter", f"{adapter}=0.7", "--adapter", f"{other}=-0.3"]
    results = [run_merge(*words, tmp_path / f"in-memory-{len(words)}", "--verify", "--json") for words in (half, both)]
    monkeypatch.setattr(verify, "FORWARD_SHARE", 1e12)
    results += [run_merge(*words, tmp_path / f"disk-{len(words)}", "--verify", "--json") for words in (half, both)]
    for result in results:
        assert result.exit_code == 0, result.output
        assert json.loads(result.stdout)["verification"]["relative_difference"] <= 1e-6


@pytest.mark.parametrize(("family", "is_from_disk"), [("llama", False), ("llama", True), ("gpt2", True)])
@pytest.mark.parametrize("rule", ["ties", "dare_linear"])
def test_what_a_rule_has_combined_is_verified(
    rule, family, is_from_disk, base_dir, make_adapter, run_merge, tmp_path, monkeypatch
):
    """With one adapter that has layers the other has not, and seeds that must be the same on both sides."""
    targets = {"llama": (["q_proj", "embed_tokens"], ["q_proj", "up_proj"]), "gpt2": (["c_attn"], ["c_attn", "c_proj"])}
    made = [
        make_adapter(base_dir(family), tmp_path / f"{seed}", target_modules=names, seed=seed)
        for seed, names in enumerate(targets[family])
    ]
    path = made[0] / "adapter_model.safetensors"  # without the copy of the embedding that PEFT puts beside its update
    save_file({name: tensor for name, tensor in load_file(path).items() if "base_layer" not in name}, path)
    if is_from_disk:
        monkeypatch.setattr(verify, "FORWARD_SHARE", 1e12)
    both = ["--adapter", f"{made[0]}=0.7", "--adapter", f"{made[1]}=-0.3", "--combine", rule, "--density", 0.5]
    result = run_merge(*both, tmp_path / "out", "--seed", 3, "--verify", "--json")
    assert result.exit_code == 0, result.output
    figures = json.loads(result.stdout)["verification"]
    assert figures["relative_difference"] <= 1e-6
    assert figures["is_from_disk"] is is_from_disk


@pytest.mark.parametrize("base_weights", ["trained", "full"])
def test_an_adapter_over_quantised_weights_is_verified(base_weights, adapter, run_merge, tmp_path, monkeypatch):
    way = {"type": "nf4", "block_size": 64, "double_quantization": True, "load_dtype": "bfloat16"}
    document = {"format_version": "1", **way, "modules": ["model.layers.0.mlp.down_proj", "model.layers.1.mlp.up_proj"]}
    (adapter / "quantization.json").write_text(json.dumps(document))
    arguments = [adapter, "--verify", "--base-weights", base_weights]
    result = run_merge(*arguments, tmp_path / "out", "--json")
    assert result.exit_code == 0, result.output
    assert json.loads(result.stdout)["verification"]["relative_difference"] <= 1e-6
    monkeypatch.setattr(verify, "FORWARD_SHARE", 1e12)
    result = run_merge(*arguments, tmp_path / "disk", "--json")
    assert result.exit_code == 0, result.output
    assert json.loads(result.stdout)["verification"]["relative_difference"] <= 1e-6


def test_another_adapter_than_the_merged_one_is_found(adapter, base_dir, run_merge, tmp_path):
    assert run_merge(adapter, tmp_path / "out").exit_code == 0
    base = read_base_model(base_dir("llama", shard_size="30KB"))
    plan = make_plan(stored_changes(read_adapter(adapter), base), base, {}, Target())
    other = tmp_path / "other"
    shutil.copytree(adapter, other)
    tensors = load_file(other / "adapter_model.safetensors")
    save_file({name: tensor * 1.1 for name, tensor in tensors.items()}, other / "adapter_model.safetensors")
    with pytest.raises(MergeError, match=r"differ from the live ones by .* the bound is 0.0001"):
        verify.verify(Live(base.base_dir, ((other, 1.0),)), tmp_path / "out", plan)


def test_models_that_do_not_run_are_told_in_one_line(adapter, base_dir, run_merge, tmp_path):
    base = tmp_path / "base"
    shutil.copytree(base_dir("llama", shard_size="30KB"), base)
    config = json.loads((base / "config.json").read_text())
    (base / "config.json").write_text(json.dumps(config | {"model_type": "nothing-known"}))
    result = run_merge(adapter, tmp_path / "out", "--base", base, "--verify")
    assert result.exit_code == 1
    assert "Error: --verify cannot run the models: The checkpoint you are trying to load" in result.stderr
    assert not (tmp_path / "out").exists()


def test_over_the_bound_nothing_is_published_and_the_shards_are_kept(adapter, run_merge, tmp_path, monkeypatch):
    monkeypatch.setattr(verify, "EXACT_BOUND", -1.0)
    result = run_merge(adapter, tmp_path / "out", "--verify")
    assert result.exit_code == 1
    assert "the merged model's logits differ from the live ones by" in result.stderr
    assert "are kept in" in result.stderr
    assert not (tmp_path / "out").exists()
