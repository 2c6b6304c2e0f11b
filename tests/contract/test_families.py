"""Every family of models from a base through training, resume and merge to an answer: what docs/models.md says.

    WRITE_MODELS_PAGE=1 .venv/bin/pytest tests/contract/test_families.py

writes the rows of the page anew; without the variable a row that is not as found fails its test.
"""

import itertools
import json
import os
import re
import shutil
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from click.testing import CliRunner

from mft_infer.cli import main as mft_infer
from mft_infer.encoding.chat_template import Conversation
from mft_infer.encoding.prompt_encoder import PromptEncoder
from mft_merge.cli import main as mft_merge
from mft_train.checkpoint.checkpoint import load_adapter
from mft_train.cli import main as mft_train
from mft_train.config.config_file import read_config
from mft_train.loss.loss_head import LossHead
from mft_train.model.compute import settle_compute
from mft_train.model.forward_pass import keeps_positions
from mft_train.model.load import load_model
from mft_train.rows.dataset_dir import open_dataset, validation_rows
from mft_train.rows.packed_batch import pack_rows

pytestmark = pytest.mark.usefixtures("released_shared_memory")
PAGE = Path(__file__).parents[2] / "docs" / "models.md"
OWN_CODE = Path(__file__).parent / "own_code"
COLUMNS = ("isolation", "logits", "targets", "step", "save", "resume", "merge", "generate")
LOG_PROBABILITY_TOLERANCE = 1e-4  # nats

SIZES = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "num_hidden_layers": 2,
    "max_position_embeddings": 512,
}
HEADS = SIZES | {"head_dim": 8}
GPT2 = {"n_embd": 32, "n_inner": 48, "n_head": 4, "n_layer": 2, "n_positions": 512}
EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 24}
ROUTED = {"n_routed_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 24, "first_k_dense_replace": 1}
LATENT = {"kv_lora_rank": 16, "q_lora_rank": 16, "qk_rope_head_dim": 8, "qk_nope_head_dim": 8, "v_head_dim": 8}
DEEPSEEK = SIZES | ROUTED | LATENT | {"n_group": 2, "topk_group": 1, "num_key_value_heads": 4}
WINDOW = {"sliding_window": 24}
MIXED = WINDOW | {"layer_types": ["sliding_attention", "full_attention"]}
MAMBA = {"mamba_n_heads": 8, "mamba_d_head": 8, "mamba_d_state": 8, "mamba_n_groups": 1}
# Model type: what is of that type, sizes.
FAMILIES = {
    "llama": ("Llama, Code Llama, Yi, DeepSeek Coder", SIZES),
    "mistral": ("Mistral", SIZES | WINDOW),
    "mixtral": ("Mixtral", SIZES | {"num_local_experts": 4}),
    "qwen2": ("Qwen 2, 2.5, 2.5 Coder", SIZES | WINDOW | {"use_sliding_window": True, "max_window_layers": 1}),
    "qwen2_moe": ("Qwen 1.5, 2 MoE", SIZES | EXPERTS | {"shared_expert_intermediate_size": 24}),
    "qwen3": ("Qwen 3", HEADS),
    "qwen3_moe": ("Qwen 3 MoE, Qwen 3 Coder", HEADS | EXPERTS),
    "gpt_bigcode": ("StarCoder, SantaCoder", GPT2),
    "starcoder2": ("StarCoder 2", SIZES),
    "deepseek_v2": ("DeepSeek V2, Coder V2", DEEPSEEK),
    "deepseek_v3": ("DeepSeek V3, R1", DEEPSEEK),
    "gpt_neox": ("GPT-NeoX, Pythia", SIZES),
    "phi": ("Phi 1, 2", SIZES),
    "phi3": ("Phi 3, 4", SIZES),
    "gemma": ("Gemma, CodeGemma", HEADS),
    "gemma2": ("Gemma 2", HEADS | WINDOW),
    "gemma3_text": ("Gemma 3", HEADS | MIXED),
    "glm": ("GLM 4 (9B)", HEADS),
    "glm4": ("GLM 4 0414", HEADS),
    "glm4_moe": ("GLM 4.5 to 4.7", HEADS | ROUTED),
    "granite": ("Granite", SIZES | {"logits_scaling": 2.0}),
    "granitemoe": ("Granite MoE", SIZES | {"num_local_experts": 4, "num_experts_per_tok": 2}),
    "olmo": ("OLMo", SIZES),
    "olmo2": ("OLMo 2", SIZES),
    "olmo3": ("OLMo 3", SIZES | MIXED),
    "olmoe": ("OLMoE", SIZES | {"num_experts": 4, "num_experts_per_tok": 2}),
    "gpt_oss": ("gpt-oss", HEADS | {"num_local_experts": 4}),
    "gpt2": ("GPT-2", GPT2),
    "gptj": ("GPT-J", GPT2 | {"rotary_dim": 4}),
    "codegen": ("CodeGen", GPT2 | {"rotary_dim": 4}),
    "falcon": ("Falcon", {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}),
    "opt": ("OPT, Galactica", SIZES | {"ffn_dim": 48, "word_embed_proj_dim": 32}),
    "stablelm": ("StableLM", SIZES),
    "smollm3": ("SmolLM 3", SIZES),
    "cohere2": ("Command R7B, A", SIZES | MIXED),
    "seed_oss": ("Seed-OSS", HEADS),
    "ernie4_5": ("ERNIE 4.5", HEADS),
    "exaone4": ("EXAONE 4", SIZES | MIXED),
    "nemotron": ("Nemotron 4", SIZES),
    "hunyuan_v1_dense": ("Hunyuan", HEADS),
    "internlm3": ("InternLM 3", SIZES),
    "bloom": ("BLOOM", {"hidden_size": 32, "n_layer": 2, "n_head": 4}),
    "qwen3_next": (
        "Qwen 3 Next, Qwen 3 Coder Next",
        HEADS
        | EXPERTS
        | {"layer_types": ["linear_attention", "full_attention"], "shared_expert_intermediate_size": 24}
        | {"linear_num_key_heads": 2, "linear_num_value_heads": 4}
        | {"linear_key_head_dim": 8, "linear_value_head_dim": 8},
    ),
    "jamba": (
        "Jamba",
        SIZES
        | {"num_experts": 4, "attn_layer_period": 2, "attn_layer_offset": 1, "mamba_d_state": 8}
        | {"expert_layer_period": 2, "expert_layer_offset": 1, "use_mamba_kernels": False},
    ),
    "lfm2": ("LFM 2", SIZES | {"layer_types": ["conv", "full_attention"], "block_auto_adjust_ff_dim": False}),
    "bamba": ("Bamba", SIZES | MAMBA | {"attn_layer_indices": [1]}),
    "granitemoehybrid": (
        "Granite 4",
        SIZES
        | MAMBA
        | {"layer_types": ["mamba", "attention"], "num_local_experts": 4, "num_experts_per_tok": 2}
        | {"mamba_expand": 2, "shared_intermediate_size": 24},
    ),
    "falcon_h1": (
        "Falcon H1",
        HEADS | {"mamba_d_ssm": 32, "mamba_n_heads": 4, "mamba_d_head": 8, "mamba_d_state": 8},
    ),
    "mamba2": (
        "Mamba 2, Codestral Mamba",
        {"hidden_size": 32, "num_hidden_layers": 2, "state_size": 8, "num_heads": 8, "head_dim": 8, "n_groups": 1},
    ),
    "own_code": ("a model with code of its own, as Baichuan, InternLM 2 and Aquila have", {}),
}


@dataclass(frozen=True, slots=True)
class Case:
    """A family's base model and the run that is made of it; `path` holds everything."""

    path: Path
    dataset: Path
    has_code: bool
    attention: str = "auto"

    @property
    def base(self) -> Path:
        return self.path / "base"

    def settings(self) -> dict:
        paths = {"model": str(self.base), "dataset": str(self.dataset), "output": str(self.path / "run")}
        sizes = {"max_steps": 2, "global_batch_size": 2, "learning_rate": 0.01, "lora": {"rank": 4}}
        rest = {"validation_interval": 0, "checkpoint_interval": 1, "keep_last": 0, "trackers": []}
        return paths | sizes | rest | {"trust_remote_code": self.has_code, "attention": self.attention}

    def config(self):
        path = self.path / "run.yaml"
        path.write_text(yaml.safe_dump(self.settings()))
        return read_config(path, [])


@pytest.fixture(scope="module")
def datasets(run, base_model, dataset, task_folders) -> dict[bool, Path]:
    """The dataset with packed rows, and with rows of one conversation."""
    alone = dataset.parent / "alone"
    sources = f"{task_folders}/completion {task_folders}/explain"
    done = run(
        f"mft-data build {sources} {alone} --tokenizer {base_model} --seq-length 256 --validation 0.1 --packing none"
    )
    assert done.returncode == 0, done.stderr
    return {True: dataset, False: alone}


def make_base(family: str, tokenizer_dir: Path, path: Path) -> None:
    """A random model of the family, whose every weight matters for its logits, with the tokenizer."""
    from transformers import AutoConfig, AutoModelForCausalLM

    ids = {"vocab_size": 320, "eos_token_id": 0, "bos_token_id": None, "pad_token_id": 1}
    torch.manual_seed(0)
    if family == "own_code":
        shutil.copytree(OWN_CODE, path, ignore=shutil.ignore_patterns("__pycache__"))
        classes = {"AutoConfig": "configuration_own.OwnConfig", "AutoModelForCausalLM": "modeling_own.OwnForCausalLM"}
        values = ids | {"model_type": family, "auto_map": classes, "architectures": ["OwnForCausalLM"]}
        (path / "config.json").write_text(json.dumps(values))
        config = AutoConfig.from_pretrained(path, trust_remote_code=True)
        model = AutoModelForCausalLM.from_config(config, trust_remote_code=True)
    else:
        config = AutoConfig.for_model(family, **ids | FAMILIES[family][1])
        model = AutoModelForCausalLM.from_config(config, trust_remote_code=False)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.1)
    model.save_pretrained(path)
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        shutil.copy(tokenizer_dir / name, path / name)


def command(main, *arguments: object) -> str:
    """What a command answers; fails with its error."""
    result = CliRunner().invoke(main, [str(argument) for argument in arguments])
    if result.exception and not isinstance(result.exception, SystemExit):
        raise result.exception
    assert result.exit_code == 0, result.stderr
    return result.stdout


def plain_model(path: Path, *, has_code: bool):
    """The model as transformers loads it, with its slowest and plainest attention."""
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(
        path, dtype=torch.float32, attn_implementation="eager", trust_remote_code=has_code
    ).eval()


def plain_losses(model, rows) -> torch.Tensor:
    """The loss of every supervised token: each conversation by itself through a plain forward."""
    losses = []
    for row in rows:
        borders = np.cumsum([0, *row.segment_lengths])
        for start, stop in itertools.pairwise(borders):
            ids = torch.from_numpy(row.input_ids[start:stop].astype(np.int64))
            mask = torch.from_numpy(row.loss_mask[start + 1 : stop].astype(bool))
            with torch.no_grad():
                log_probabilities = model(input_ids=ids[None]).logits[0, :-1].log_softmax(-1)
            losses.append(-log_probabilities.gather(1, ids[1:, None])[mask, 0])
    return torch.cat(losses)


def trainer_losses(model, rows) -> torch.Tensor:
    """The loss of every supervised token as the trainer takes it: all rows as one batch."""
    head = LossHead(model)
    losses = []
    for row in rows:
        batch = pack_rows([row])
        with torch.no_grad():
            losses.append(head(model, batch, torch.ones(batch.labels.numel()))[1])
    return torch.cat(losses)


def assert_close(got: torch.Tensor, expected: torch.Tensor) -> None:
    assert got.shape == expected.shape
    assert (got - expected).abs().max() < LOG_PROBABILITY_TOLERANCE


def events(case: Case) -> list[dict]:
    return [json.loads(line) for line in (case.path / "run" / "metrics.jsonl").read_text().splitlines()]


def losses_of(case: Case) -> list[float]:
    return [event["loss"] for event in events(case) if event["event"] in ("train", "validation")]


def first_launch(case: Case, datasets: dict[bool, Path]) -> tuple[Case, str]:
    """Trains on packed rows, or where that is refused on rows of one conversation; what became of isolation."""
    case.config()
    result = CliRunner().invoke(mft_train, ["launch", str(case.path / "run.yaml")])
    if result.exit_code == 0:
        return case, "yes"
    message = result.stderr.strip().splitlines()[-1]
    assert "--packing none" in message, message
    assert not (case.path / "run").exists()
    if "set attention: eager" in message:
        case = replace(case, attention="eager")
        case.config()
        command(mft_train, "launch", case.path / "run.yaml")
        return case, "with `attention: eager`"
    reason = re.sub(r": logits differ by .*|, (set|build) .*", "", message.removeprefix("Error: "))
    reason = re.sub(r"^attention \w+ cannot run this model: ", "", reason).split(". ")[0]
    case = replace(case, dataset=datasets[False])
    case.config()
    command(mft_train, "launch", case.path / "run.yaml")
    return case, f"refused: {reason}; rows of one conversation"


def examine(case: Case, datasets: dict[bool, Path]) -> dict[str, str]:
    """The cells of a family, each `yes` or what is to be known; fails where the trainer is wrong."""
    from peft import PeftModel
    from safetensors.torch import load_file

    case, isolation = first_launch(case, datasets)
    cells = {"isolation": isolation}
    config, final = case.config(), case.path / "run" / "final"
    dataset = open_dataset(str(case.dataset))
    rows = list(validation_rows(dataset, 0, 1))
    model = load_model(config, settle_compute(config, torch.device("cpu")), dataset).eval()
    head = LossHead(model)
    cells["logits"] = "in chunks" if head.projection is not None else "yes" if keeps_positions(model) else "no"

    # An adapter that has not learned changes nothing: the base by itself, through the trainer's attention and loss.
    base_losses = plain_losses(plain_model(case.base, has_code=case.has_code), rows)
    assert_close(trainer_losses(model, rows), base_losses)
    assert losses_of(case)[0] == pytest.approx(task_mean(base_losses, rows), abs=LOG_PROBABILITY_TOLERANCE)
    cells["step"] = "yes"

    adapter = load_file(final / "adapter_model.safetensors")
    untrained = [name for name, tensor in adapter.items() if "lora_B" in name and not tensor.any()]
    assert not untrained, f"no gradient has come to {untrained}"
    cells["targets"] = ", ".join(sorted({target(name) for name in adapter}))
    load_adapter(model, final)
    tuned_losses = trainer_losses(model, rows)
    assert (tuned_losses - base_losses).abs().max() > 100 * LOG_PROBABILITY_TOLERANCE
    assert losses_of(case)[-1] == pytest.approx(task_mean(tuned_losses, rows), abs=LOG_PROBABILITY_TOLERANCE)
    reloaded = PeftModel.from_pretrained(plain_model(case.base, has_code=case.has_code), final).eval()
    assert_close(plain_losses(reloaded, rows), tuned_losses)
    cells["save"] = "yes"

    before = losses_of(case)
    shutil.rmtree(final)
    shutil.rmtree(case.path / "run" / "checkpoints" / "step-00000002")
    command(mft_train, "launch", case.path / "run.yaml", "--resume")
    assert losses_of(case) == before
    resumed = load_file(final / "adapter_model.safetensors")
    assert all(torch.equal(resumed[name], tensor) for name, tensor in adapter.items())
    cells["resume"] = "yes"

    merged = case.path / "merged"
    command(mft_merge, final, merged)
    merged_model = plain_model(merged, has_code=case.has_code)
    assert_close(plain_losses(merged_model, rows), tuned_losses)
    cells["merge"] = "yes"
    cells["generate"] = "no: mft-infer runs no code of models" if case.has_code else generate(merged, merged_model)
    return cells


def task_mean(losses: torch.Tensor, rows) -> float:
    """The mean over tasks of the mean token loss of each."""
    tasks = np.concatenate([np.full(pack_rows([row]).labels.numel(), row.task_id) for row in rows])
    return float(np.mean([losses[tasks == task].mean() for task in sorted(set(tasks))]))


def target(name: str) -> str:
    """The layer that a tensor of an adapter belongs to, by the last part of its name."""
    parts = [part for part in name.split(".") if part not in ("weight", "lora_A", "lora_B", "base_layer")]
    return parts[-1]


def generate(merged: Path, model) -> str:
    """What came of an answer of mft-infer: its tokens are the most likely ones by a plain forward."""
    from transformers import AutoTokenizer

    messages = [{"role": "user", "content": "Complete number 3: def add(a, b):"}]
    prompts = merged.parent / "prompts.jsonl"
    prompts.write_text(json.dumps({"problem_id": "a", "messages": messages}) + "\n")
    options = ("--logprobs", "--max-new-tokens", "6", "--dtype", "float32", "--device", "cpu")
    answer = json.loads(command(mft_infer, "generate", merged, prompts, "-", *options))
    assert answer.get("error") is None, answer
    tokenizer = AutoTokenizer.from_pretrained(merged, trust_remote_code=False)
    prompt_ids = PromptEncoder(tokenizer, "merged").encode_conversation(Conversation(messages))
    ids = torch.tensor([prompt_ids + answer["token_ids"]])
    with torch.no_grad():
        log_probabilities = model(input_ids=ids).logits[0, len(prompt_ids) - 1 : -1].log_softmax(-1)
    got = torch.tensor(answer["logprobs"])
    assert_close(got, log_probabilities.gather(1, ids[0, len(prompt_ids) :, None])[:, 0])
    assert_close(got, log_probabilities.amax(-1))
    return "yes"


def row_of(family: str, cells: dict[str, str]) -> str:
    title, _ = FAMILIES[family]
    return f"| `{family}` | {title} | " + " | ".join(cells[column] for column in COLUMNS) + " |"


@pytest.mark.parametrize("family", FAMILIES)
def test_a_family_does_what_the_page_says(family, datasets, base_model, tmp_path):
    case = Case(tmp_path, datasets[True], has_code=family == "own_code")
    make_base(family, base_model, case.base)
    row = row_of(family, examine(case, datasets))
    lines = PAGE.read_text(encoding="utf-8").splitlines()
    if os.environ.get("WRITE_MODELS_PAGE"):
        others = [line for line in lines if not line.startswith(f"| `{family}` ")]
        last = max(index for index, line in enumerate(others) if line.startswith("|"))
        PAGE.write_text("\n".join([*others[: last + 1], row, *others[last + 1 :]]) + "\n", encoding="utf-8")
        return
    assert row in lines, f"docs/models.md is stale, its row is now\n{row}"


def test_the_page_has_these_families_and_no_other():
    lines = PAGE.read_text(encoding="utf-8").splitlines()
    assert re.findall(r"^\| `(\w+)` \|", "\n".join(lines), re.MULTILINE) == list(FAMILIES)


def test_code_that_comes_with_a_model_is_run_on_demand_only(datasets, base_model, tmp_path):
    case = Case(tmp_path, datasets[False], has_code=True)
    make_base("own_code", base_model, case.base)
    case.config()
    refused = CliRunner().invoke(mft_train, ["launch", str(tmp_path / "run.yaml"), "trust_remote_code=false"])
    assert refused.exit_code == 1
    assert refused.stderr == (
        f'Error: model "{case.base}" is made by Python code that comes with it, '
        "set trust_remote_code: true if you trust that code\n"
    )
    allowed = CliRunner().invoke(mft_train, ["launch", str(tmp_path / "run.yaml")])
    assert allowed.exit_code == 0, allowed.stderr
    warning = f"trust_remote_code: the Python code that comes with {case.base} is run with all rights that you have\n"
    assert allowed.stderr.count(warning) == 1
