"""The page for those who come from MFTCoder: every command of ours on it runs as it is written."""

import json
import re
import shlex
import shutil
from importlib import import_module
from pathlib import Path

import pytest
from click.testing import CliRunner

ROOT = Path(__file__).parent.parent.parent
PAGE = (ROOT / "docs" / "migrating.md").read_text()
OURS = re.findall(r"^    (\S.*)$", re.sub(r"```.*?```", "", PAGE, flags=re.DOTALL), re.MULTILINE)
OLD_CONFIG = {
    "data_paths": "[code-instruct,code-translate]",
    "output_dir": "run",
    "tb_dir": "tb",
    "pretrained_model_path": "BASE",
    "model_type": "llama",
    "padding_mode": "pack",
    "weighted_loss_mode": "case3",
    "attn_implementation": "flash_attention_2",
    "seq_length": 4096,
    "peft_type": "lora",
    "quantization": None,
    "lora_rank": 4,
    "lora_alpha": 32,
    "per_device_train_batch_size": 2,
    "num_warmup_steps": 1,
    "max_train_steps": 2,
    "num_train_epochs": 1,
    "evaluation_steps": 100,
}
OLD_ACCELERATE = """\
compute_environment: LOCAL_MACHINE
distributed_type: DEEPSPEED
deepspeed_config: {zero_stage: 2, offload_optimizer_device: cpu, offload_param_device: none, gradient_clipping: 1.0}
mixed_precision: bf16
num_machines: 1
num_processes: 8
"""


@pytest.fixture
def folder(base_model, task_folders, problems, tmp_path, monkeypatch):
    """A folder with what the page speaks of, and the commands run in it."""
    shutil.copytree(base_model, tmp_path / "BASE")
    shutil.copytree(task_folders / "completion", tmp_path / "code-instruct")
    shutil.copytree(task_folders / "explain", tmp_path / "code-translate")
    shutil.copy(problems, tmp_path / "problems.jsonl")
    (tmp_path / "lora_train_config.json").write_text(json.dumps(OLD_CONFIG))
    (tmp_path / "accelerate_ds_config.yaml").write_text(OLD_ACCELERATE)
    (prompt,) = re.findall(r'`(\{"problem_id".*\})`', PAGE)
    (tmp_path / "prompts.jsonl").write_text(prompt + "\n")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def run(line):
    """Runs a line of the page by the commands' own entry points, joined by their pipes; the last one's outcome."""
    piped, done = "", None
    for part in line.split(" | "):
        words = shlex.split(part, comments=True)
        environment = {}
        while "=" in words[0]:
            name, value = words.pop(0).split("=")
            environment[name] = value
        command, *arguments = words
        if arguments[0] == "launch" and "--processes" in arguments:
            arguments.append("--print-command")
        main = import_module(f"{command.replace('-', '_')}.cli").main
        done = CliRunner().invoke(main, arguments, input=piped, env=environment, prog_name=command)
        assert done.exit_code == 0, f"{part}\n{done.stderr}{done.exception}"
        piped = done.stdout
    return done


@pytest.mark.slow
def test_every_command_of_ours_runs_as_it_is_written(folder):
    outputs = {line: run(line) for line in OURS}
    assert len(outputs) == len(OURS) >= 17
    (told,) = (done.stderr for line, done in outputs.items() if line.endswith("run.yaml --processes 8") and done.stderr)
    first = told.splitlines()[0]
    assert first.startswith("data_paths: build the dataset first: mft-data build code-instruct code-translate dataset/")
    assert (folder / "run" / "final" / "adapter_model.safetensors").is_file()
    assert (folder / "merged" / "model.safetensors").is_file()
    answers = (folder / "answers.jsonl").read_text().splitlines()
    assert [json.loads(answer)["problem_id"] for answer in answers] == ["sort"]
    for name in ("beams", "greedy"):
        assert len(json.loads((folder / f"{name}.json").read_text())["problems"]) == 2
    launches = [done.stdout for line, done in outputs.items() if " launch " in line and "--processes" in line]
    assert len(launches) == 5
    assert all("-m mft_train" in text or "--module mft_train" in text for text in launches)


def test_its_model_types_are_those_that_were_tried():
    tried = set(re.findall(r"^\| `(\w+)` \|", (ROOT / "docs" / "models.md").read_text(), re.MULTILINE))
    table = PAGE.split("| `model_type` |")[1].split("\n\n")[0]
    named = {name for row in table.splitlines()[2:] for name in re.findall(r"`(\w+)`", row.split("|")[2])}
    assert len(named) >= 14
    assert named <= tried


def test_keys_of_ours_are_keys_of_a_run():
    """What the tables of the page call a key of the config is one."""
    from mft_train.config.config import RunConfig

    keys = set(re.findall(r"`([a-z_]+): ", PAGE)) - {"stage"}
    assert len(keys) >= 7
    assert keys <= set(RunConfig.model_fields)
