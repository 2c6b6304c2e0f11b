"""Whole runs of two processes under every engine: the curve of one, exact resumes, checkpoints that fit any engine."""

import json
import shutil
from pathlib import Path

import pytest
from click.testing import CliRunner

from mft_train.cli import main

SETTINGS = {
    "max_steps": 6,
    "global_batch_size": 4,
    "learning_rate": 0.01,
    "validation_interval": 3,
    "checkpoint_interval": 3,
    "loss": {
        "balancer": "coba",
        "balancer_interval": 1,
        "probe_rows": 3,
        "coba": {"warmup_updates": 1, "history_length": 3},
    },
    "trackers": [],
}
MEASURED = {"tokens_per_second", "peak_memory_bytes"}
ZERO = ["distributed.engine=deepspeed"]
# As the page's table has them, with the overrides that choose them.
ENGINES = {
    "ddp": [],
    "fsdp": ["distributed.engine=fsdp"],
    "fsdp, offload": ["distributed.engine=fsdp", "distributed.offload_parameters=true"],
    "deepspeed, stage 1": [*ZERO, "distributed.stage=1"],
    "deepspeed, stage 2": [*ZERO, "distributed.stage=2"],
    "deepspeed, stage 3": [*ZERO, "distributed.stage=3"],
    "deepspeed, stage 3, offload": [
        *ZERO,
        "distributed.stage=3",
        "distributed.offload_optimizer=true",
        "distributed.offload_parameters=true",
    ],
}
DESCRIBED = {
    "ddp": "ddp",
    "fsdp": "fsdp (torch's FSDP2)",
    "fsdp, offload": "fsdp (torch's FSDP2), in host memory",
    "deepspeed, stage 1": "deepspeed, ZeRO stage 1",
    "deepspeed, stage 2": "deepspeed, ZeRO stage 2",
    "deepspeed, stage 3": "deepspeed, ZeRO stage 3",
    "deepspeed, stage 3, offload": "deepspeed, ZeRO stage 3",
}
METHODS = {
    "full": ["method=full"],
    "lora": ["method=lora"],
    "lora, dora: true": ["method=lora", "lora.dora=true"],
    "lora, modules_to_save": ["method=lora", "lora.modules_to_save=[embed_tokens]"],
    "lora, init: pissa": ["method=lora", "lora.init=pissa"],
    "qlora": ["method=qlora"],
    "qlora, type: int8": ["method=qlora", "quantization.type=int8"],
}
# What resumes of these would add is in those of lora and qlora.
NOT_RESUMED = {"lora, dora: true", "lora, modules_to_save", "lora, init: pissa", "qlora, type: int8"}
# The other stages do with these what they do with lora and qlora.
ONLY = dict.fromkeys(("lora, init: pissa", "qlora, type: int8"), ("ddp", "fsdp", "deepspeed, stage 3"))
# It is fsdp with its shares elsewhere.
FEW = {"fsdp, offload": ("full", "qlora")}
CELLS = [
    (engine, method)
    for engine in ENGINES
    for method in METHODS
    if engine in ONLY.get(method, ENGINES) and method in FEW.get(engine, METHODS)
]
PAGE = Path(__file__).parents[4] / "docs" / "distributed.md"


@pytest.fixture(scope="module")
def base_model(tmp_path_factory, make_model):
    """A model whose rows are multiples of a block of 4-bit numbers."""
    path = tmp_path_factory.mktemp("model") / "base"
    return make_model(path, hidden_size=64, intermediate_size=128)


@pytest.fixture(scope="module")
def run(tmp_path_factory, base_model, tiny_dataset, rank_server):
    """Runs the config in ranks that are forked from a process which has imported everything."""
    import yaml

    folder = tmp_path_factory.mktemp("runs")
    path, printed = folder / "run.yaml", folder / "printed.txt"
    values = {"model": str(base_model), "dataset": str(tiny_dataset), "output": "given by each run"}
    path.write_text(yaml.safe_dump(values | SETTINGS))

    def run(ranks, output, *arguments, **request):
        printed.unlink(missing_ok=True)
        codes = rank_server.run(ranks, printed, ["launch", path, f"output={output}", *arguments], **request)
        assert codes == [0] * ranks, printed.read_text()
        return printed.read_text()

    return run


@pytest.fixture(scope="module")
def alone(run, tmp_path_factory):
    """The run of one process with a method, made once."""
    made = {}

    def alone(method):
        if method not in made:
            made[method] = tmp_path_factory.mktemp("alone") / "run"
            run(1, made[method], *METHODS[method])
        return made[method]

    return alone


def events(run_dir, kind):
    lines = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in line.items() if k not in MEASURED} for line in lines if line["event"] == kind]


def weights(run_dir):
    return {path.name: path.read_bytes() for path in (run_dir / "final").glob("*.safetensors")}


def forget_the_second_half(run_dir):
    shutil.rmtree(run_dir / "final")
    shutil.rmtree(run_dir / "checkpoints" / "step-00000006")


def assert_same_curve(run_dir, other):
    for kind in ("train", "validation"):
        for left, right in zip(events(run_dir, kind), events(other, kind), strict=True):
            assert right["loss"] == pytest.approx(left["loss"], rel=1e-5)
            assert right["task_losses"] == pytest.approx(left["task_losses"], rel=1e-5)
            if kind == "train":
                assert right["grad_norm"] == pytest.approx(left["grad_norm"], rel=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize(("engine", "method"), CELLS)
def test_an_engine_trains_the_curve_of_one_process_and_resumes_anywhere(
    run, alone, tmp_path, base_model, engine, method
):
    chosen, whole, sharded = [*ENGINES[engine], *METHODS[method]], tmp_path / "whole", tmp_path / "sharded"
    shutil.copytree(alone(method), whole)
    printed = run(2, sharded, *chosen)
    assert f"2 processes: {DESCRIBED[engine]}, gloo, cpu, float32" in printed
    assert_same_curve(whole, sharded)
    assert_loads(sharded / "final", base_model, method)
    if method in NOT_RESUMED:
        return
    curve, final = events(sharded, "train"), weights(sharded)

    forget_the_second_half(sharded)
    run(2, sharded, *chosen, "--resume")
    assert events(sharded, "train") == curve, "a resume is bit for bit"
    assert weights(sharded) == final

    forget_the_second_half(sharded)
    run(1, sharded, *METHODS[method], "--resume")
    assert_same_curve(whole, sharded)
    forget_the_second_half(whole)
    run(2, whole, *chosen, "--resume")
    assert_same_curve(sharded, whole)


@pytest.mark.slow
@pytest.mark.parametrize("base", ["dense", "experts"])
@pytest.mark.parametrize("engine", ["fsdp", "fsdp, offload", "deepspeed, stage 3"])
def test_ranks_that_read_their_shares_train_as_those_that_rank_0_sends_theirs(run, tmp_path, engine, base):
    chosen = [*ENGINES[engine], "method=full", "max_steps=3"]
    if base == "experts":
        write_experts(tmp_path / "base")
        chosen.append(f"model={tmp_path / 'base'}")
    run(2, tmp_path / "read", *chosen)
    run(2, tmp_path / "sent", *chosen, "trust_remote_code=true")
    assert events(tmp_path / "read", "train") == events(tmp_path / "sent", "train")
    assert weights(tmp_path / "read") == weights(tmp_path / "sent")


def table():
    """What the tests above hold, cell by cell."""
    lines = [f"| engine | {' | '.join(METHODS)} |", f"|---|{'---|' * len(METHODS)}"]
    for engine in ENGINES:
        held = {
            method: "losses, final" if method in NOT_RESUMED else "losses, resume, elastic, final" for method in METHODS
        }
        cells = [held[method] if (engine, method) in CELLS else "not tested" for method in METHODS]
        lines.append(f"| {engine} | {' | '.join(cells)} |")
    return "\n".join(lines)


def test_the_page_has_the_table_of_what_is_tested():
    assert table() in PAGE.read_text(), f"put this into {PAGE}:\n\n{table()}"


def assert_loads(final, base_model, method):
    """What a run leaves is what anyone else reads, and no tensor of it is empty."""
    from safetensors.torch import load_file
    from transformers import AutoModelForCausalLM

    tensors = {name: tensor for file in final.glob("*.safetensors") for name, tensor in load_file(file).items()}
    assert tensors
    assert all(tensor.numel() for tensor in tensors.values())
    if method != "full":
        from peft import PeftModel, get_peft_model_state_dict

        base = AutoModelForCausalLM.from_pretrained(base_model)
        loaded = get_peft_model_state_dict(PeftModel.from_pretrained(base, final))
        assert loaded.keys() == tensors.keys()
        assert all(loaded[name].equal(tensor) for name, tensor in tensors.items())
    else:
        model, found = AutoModelForCausalLM.from_pretrained(final, output_loading_info=True, trust_remote_code=False)
        assert not found["missing_keys"]
        assert model.num_parameters() == AutoModelForCausalLM.from_pretrained(base_model).num_parameters()


def write_biased_model(path):
    """A model whose queries, keys and values have biases."""
    from transformers import Qwen2Config, Qwen2ForCausalLM

    shape = {"vocab_size": 97, "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2}
    Qwen2ForCausalLM(Qwen2Config(**shape, num_attention_heads=4, num_key_value_heads=2)).save_pretrained(path)


def write_experts(path):
    """A model whose experts are in one parameter each."""
    from transformers import MixtralConfig, MixtralForCausalLM

    shape = {"vocab_size": 97, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2}
    shape |= {"num_attention_heads": 4, "num_key_value_heads": 2, "num_local_experts": 4, "num_experts_per_tok": 2}
    MixtralForCausalLM(MixtralConfig(**shape, router_aux_loss_coef=0.0)).save_pretrained(path)


KINDS = {
    "pissa": (None, ["lora.init=pissa"]),
    "biases, a pattern": (
        write_biased_model,
        [
            "lora.bias=lora_only",
            "lora.lora_bias=true",
            r"lora.target_modules='.*layers\.\d+\.self_attn\.[qkv]_proj'",
        ],
    ),
    "experts": (write_experts, ["lora.target_parameters=[experts.gate_up_proj, experts.down_proj]"]),
}


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_adapter_is_the_same_in_two_processes_and_resumes(run, tmp_path, base_model, kind):
    write_base, chosen = KINDS[kind]
    if write_base:
        base_model = tmp_path / "base"
        write_base(base_model)
        chosen = [*chosen, f"model={base_model}"]
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    run(1, whole, *chosen)
    run(2, parts, *chosen)
    assert_same_curve(whole, parts)
    assert_loads(parts / "final", base_model, "lora")
    curve, final = events(parts, "train"), weights(parts)
    forget_the_second_half(parts)
    run(2, parts, *chosen, "--resume")
    assert events(parts, "train") == curve
    assert weights(parts) == final


@pytest.mark.slow
def test_a_run_of_two_processes_then_one_then_two_takes_the_rows_of_one(run, tmp_path):
    chosen = ["schedule=constant", "loss.balancer=static", "checkpoint_interval=0"]
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    run(1, whole, *chosen, "max_steps=12", rows=str(tmp_path / "straight"))
    for index, (ranks, steps) in enumerate([(2, 3), (1, 9), (2, 12)]):  # an epoch ends at step 8
        resume = ["--resume"] if index else []
        run(ranks, parts, *chosen, f"max_steps={steps}", *resume, rows=str(tmp_path / f"part-{index}"))

    def taken(pattern):
        steps = {}
        for path in sorted(tmp_path.glob(pattern)):
            for line in path.read_text().splitlines():
                step, rows = json.loads(line)
                steps.setdefault(step, []).extend(rows)
        return {step: sorted(rows) for step, rows in steps.items()}

    assert taken("part-*") == taken("straight.*")
    assert sorted(taken("part-*")) == list(range(1, 13))
    for left, right in zip(events(whole, "train"), events(parts, "train"), strict=True):
        assert right["loss"] == pytest.approx(left["loss"], rel=1e-5)
    seen = [tuple(row) for step in range(1, 9) for row in taken("part-*")[step]]
    assert len(seen) == len(set(seen)) == 29, "an epoch has every row once"


@pytest.mark.slow
@pytest.mark.parametrize(
    "settings",
    [
        [*ENGINES["fsdp"], "micro_batch_size=2"],
        [*ENGINES["fsdp"], "gradient_checkpointing=true", "distributed.reshard_after_forward=false"],
        [*ENGINES["deepspeed, stage 2"], "micro_batch_size=2"],
        [*ENGINES["deepspeed, stage 3"], "gradient_checkpointing=true", "background_checkpoints=true"],
    ],
)
def test_settings_of_speed_and_memory_change_no_loss(run, alone, tmp_path, settings):
    run(2, tmp_path / "run", *METHODS["full"], *settings)
    assert_same_curve(alone("full"), tmp_path / "run")


@pytest.mark.slow
def test_fsdp_trains_a_base_that_is_stored_in_bfloat16_in_float32(run, tmp_path, base_model):
    """It makes float32 of a layer at a time, one process of the whole model."""
    import torch
    from transformers import AutoModelForCausalLM

    stored = tmp_path / "stored"
    AutoModelForCausalLM.from_pretrained(base_model, dtype=torch.bfloat16).save_pretrained(stored)
    chosen = [*METHODS["full"], f"model={stored}", "max_steps=2", "loss.balancer=static"]
    run(1, tmp_path / "whole", *chosen)
    run(2, tmp_path / "shared", *chosen, *ENGINES["fsdp"])
    assert_same_curve(tmp_path / "whole", tmp_path / "shared")
    configs = [json.loads((tmp_path / name / "final" / "config.json").read_text()) for name in ("whole", "shared")]
    assert configs[0] == configs[1]


@pytest.mark.slow
def test_every_engine_computes_in_bfloat16_and_tells_losses_in_full(run, tmp_path):
    chosen = {
        "ddp": ENGINES["ddp"],
        "deepspeed": ENGINES["deepspeed, stage 3"],
        "fsdp": [*ENGINES["fsdp"], "distributed.mixed_precision=false"],
        "fsdp, mixed": ENGINES["fsdp"],
    }
    curves = {}
    for name, engine in {"float32": [], **chosen}.items():
        dtype = "float32" if name == "float32" else "bfloat16"
        run(2, tmp_path / name, *engine, *METHODS["full"], f"dtype={dtype}", "max_steps=2")
        curves[name] = [event["loss"] for event in events(tmp_path / name, "train")]
        for event in events(tmp_path / name, "train"):  # equal weights: the mean over tasks
            mean = sum(event["task_losses"].values()) / len(event["task_losses"])
            assert event["loss"] == pytest.approx(mean, rel=1e-6)
    for name in chosen:
        tolerance = 2e-3 if name == "fsdp, mixed" else 1e-5
        assert curves[name] == pytest.approx(curves["ddp"], rel=tolerance)
        assert max(abs(a - b) for a, b in zip(curves[name], curves["float32"], strict=True)) > 1e-4


@pytest.fixture
def config(write_run):
    return lambda method: write_run(**SETTINGS, method=method)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["distributed.engine=fsdp"], "distributed.engine fsdp shares weights between processes, there is one"),
        (["distributed.engine=fsdp", "optimizer=adamw_8bit", "--processes", "2"], "adamw_8bit knows no shared weights"),
        (["distributed.engine=fsdp", "compile=true", "--processes", "2"], "compile is not tested with fsdp"),
        (
            ["distributed.engine=fsdp", "method=qlora", "lora.dora=true", "--processes", "2"],
            "lora.dora over a quantised base does not run with fsdp",
        ),
        (
            ["distributed.engine=fsdp", "distributed.offload_optimizer=true", "--processes", "2"],
            "fsdp offloads everything or nothing",
        ),
        (["distributed.reshard_after_forward=false"], "reshard_after_forward has no effect with engine auto"),
    ],
)
def test_settings_that_an_engine_cannot_run_are_one_line(config, tmp_path, overrides, message):
    path = config("lora")
    result = CliRunner().invoke(main, ["launch", str(path), f"output={tmp_path / 'run'}", *overrides])
    assert result.exit_code == 1
    (line,) = [line for line in result.stderr.splitlines() if line.startswith("Error: ")]
    assert message in line
    assert not (tmp_path / "run").exists()
