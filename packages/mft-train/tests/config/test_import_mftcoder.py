import json

import pytest
from click.testing import CliRunner

from mft_train.cli import main
from mft_train.config.config_file import read_config
from mft_train.config.mftcoder_keys import DEFAULTS, GONE, LOSS_MODES, SAME

OLD = {
    "data_paths": "[/data/code-exercises,/data/evol]",
    "output_dir": "out/",
    "tb_dir": "tb/",
    "pretrained_model_path": "base/",
    "model_type": "qwen",
    "max_train_steps": 1000,
}


@pytest.fixture
def convert(tmp_path):
    def convert(*options, **settings):
        old, new = tmp_path / "old.json", tmp_path / "new.yaml"
        new.unlink(missing_ok=True)
        old.write_text(json.dumps(OLD | settings))
        result = CliRunner().invoke(main, ["import-mftcoder", str(old), str(new), *options])
        assert result.exit_code == 0, result.stderr
        assert result.stdout == f"{new}\n"
        notes = dict(line.split(": ", 1) for line in result.stderr.splitlines())
        return read_config(new), notes

    return convert


def test_a_small_config_takes_the_defaults_of_mftcoder(convert):
    config, notes = convert()
    assert (config.model, config.output, config.dataset) == ("base/", "out/", "dataset/")
    assert (config.method, config.lora.rank, config.lora.alpha, config.lora.dropout) == ("qlora", 96, 32.0, 0.05)
    assert (config.max_steps, config.epochs, config.warmup_ratio, config.warmup_steps) == (1000, None, 0.05, 0)
    assert (config.learning_rate, config.min_learning_rate, config.weight_decay) == (5e-5, 5e-6, 0.01)
    assert (config.micro_batch_size, config.global_batch_size, config.seed) == (8, 8, 1234)
    assert (config.log_interval, config.checkpoint_interval, config.validation_interval) == (10, 100, 100)
    assert (config.loss.reduction, config.loss.balancer) == ("task_mean", "static")
    build = "mft-data build /data/code-exercises /data/evol dataset/ --tokenizer base/ --seq-length 4096"
    assert notes["data_paths"] == f"build the dataset first: {build} --validation 0.02 --packing none"
    assert notes["tb_dir"].startswith("no key: ")
    assert "lora_rank 96" in notes["defaults"]


@pytest.mark.parametrize("mode", sorted(LOSS_MODES))
def test_every_loss_mode_has_its_reduction_and_balancer(convert, mode):
    config, notes = convert("--program", "mft-0.3", weighted_loss_mode=mode)
    assert (config.loss.reduction, config.loss.balancer) == LOSS_MODES[mode]
    assert "global batch" in notes["weighted_loss_mode"]


def test_coba_settings(convert):
    settings = {"coba_warmup_steps": 50, "coba_update_interval": 4, "coba_tau": 3, "per_device_eval_batch_size": 2}
    config, _ = convert(weighted_loss_mode="coba", coba_sample_valid_num=3, **settings)
    assert (config.loss.coba.warmup_updates, config.loss.coba.history_length, config.loss.coba.tau) == (13, 200, 3.0)
    assert (config.loss.balancer_interval, config.loss.probe_rows, config.loss.probe_tasks) == (4, 6, None)
    _, notes = convert(**settings)
    assert notes["coba_tau"] == "no key: weighted_loss_mode is case3"


def test_self_paced_settings(convert):
    config, _ = convert("--program", "mft-0.3", weighted_loss_mode="selfpaced", selfpaced_scale_factor=30)
    assert (config.loss.self_paced.history_length, config.loss.self_paced.scale) == (100, 30.0)
    assert (config.weight_decay, config.warmup_steps) == (0.1, 300)


def test_task_weights_get_the_names_of_the_folders(convert):
    config, _ = convert(task_weights="[1, 2.5]")
    assert config.loss.task_weights == {"code-exercises": 1.0, "evol": 2.5}
    config, notes = convert(task_weights=[1, 2], weighted_loss_mode="case1")
    assert config.loss.task_weights == {}
    assert notes["task_weights"].startswith("no key")


def test_batches_epochs_and_warm_up(convert):
    config, notes = convert(
        "--processes", "4", max_train_steps=None, gradient_accumulation_steps=3, per_device_train_batch_size=2
    )
    assert (config.micro_batch_size, config.global_batch_size) == (2, 24)
    assert (config.epochs, config.max_steps, config.warmup_ratio) == (4, None, 0.05)
    assert "num_warmup_steps" in notes


@pytest.mark.parametrize(
    ("kind", "schedule", "warmup"),
    [("linear", "linear", 20), ("constant", "constant", 0), ("constant_with_warmup", "constant", 20)],
)
def test_schedules(convert, kind, schedule, warmup):
    config, _ = convert(lr_scheduler_type=kind, num_warmup_steps=20)
    assert (config.schedule, config.warmup_steps) == (schedule, warmup)
    _, notes = convert(lr_scheduler_type="polynomial")
    assert "no schedule polynomial" in notes["lr_scheduler_type"]


def test_early_stopping_and_retention(convert):
    config, _ = convert()
    assert (config.early_stopping_patience, config.keep_last) == (5, 0)
    config, _ = convert(early_stopping=False, saving_limit=3)
    assert (config.early_stopping_patience, config.keep_last) == (0, 3)


def test_methods(convert):
    assert convert(peft_type=None)[0].method == "full"
    assert convert("--program", "mpt-0.5")[0].method == "full"
    config, notes = convert(peft_type="lora", target_modules=["q_proj"])
    assert config.lora.target_modules == ["q_proj"]
    assert "peft_type" not in notes
    config, notes = convert(peft_type="qlora")
    assert (config.method, config.quantization.type, config.quantization.double_quant) == ("qlora", "nf4", True)
    assert "peft_type" not in notes
    assert convert(peft_type="qlora", quantization="8bit")[0].quantization.type == "int8"
    assert "no adalora" in convert(peft_type="adalora")[1]["peft_type"]


def test_the_dataset_command(convert):
    _, notes = convert(data_split="90,5,5", padding_mode="pack", tokenize_mode="pretrain", seq_length=1024)
    assert notes["data_paths"].endswith("--seq-length 1024 --validation 0.05 --packing best-fit --format text")
    assert notes["padding_mode"].startswith("no key: ")


def test_attention(convert):
    assert convert()[0].attention == "auto"
    config, notes = convert(attn_implementation="sdpa")
    assert config.attention == "segments"
    assert "segments" in notes["attn_implementation"]


def test_every_key_without_counterpart_says_why(convert):
    _, notes = convert(**dict.fromkeys(GONE, 1) | {"data_split": "98,2,0"})
    assert all(notes[name].startswith("no key: ") for name in GONE)
    assert not set(GONE) & set(SAME)
    assert set(SAME) - {"pretrained_model_path", "output_dir"} <= set(DEFAULTS["mft-0.5"])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"a": ', "not valid JSON: "),
        ("[1]", "the old config is not a JSON object"),
        ("{}", 'key "data_paths" is missing'),
        (json.dumps(OLD | {"lora_rnak": 1}), '"lora_rnak" is not a key of MFTCoder mft-0.5'),
        (json.dumps(OLD | {"weighted_loss_mode": "case9"}), 'weighted_loss_mode "case9" is not known'),
        (json.dumps(OLD | {"task_weights": "[1]"}), "task_weights has 1 numbers for 2 data_paths"),
        (json.dumps(OLD | {"data_paths": "[a/x,b/x]"}), "data_paths does not name a different folder"),
        (json.dumps(OLD | {"lora_dropout": 2}), '"lora.dropout" is 2: input should be less than 1'),
        (json.dumps(OLD | {"per_device_train_batch_size": "many"}), "per_device_train_batch_size is 'many'"),
        (json.dumps(OLD | {"coba_update_interval": 0, "weighted_loss_mode": "coba"}), "coba_update_interval is 0"),
        (json.dumps(OLD | {"data_split": "98"}), "data_split '98' is not like"),
        (json.dumps(OLD | {"num_warmup_steps": None}), "num_warmup_steps is None"),
    ],
)
def test_a_bad_config_is_one_line(tmp_path, text, message):
    old, new = tmp_path / "old.json", tmp_path / "new.yaml"
    old.write_text(text)
    result = CliRunner().invoke(main, ["import-mftcoder", str(old), str(new)])
    assert result.exit_code == 1
    assert len(result.stderr.splitlines()) == 1
    assert message in result.stderr
    assert not new.exists()


def test_import_does_not_overwrite(tmp_path):
    old, new = tmp_path / "old.json", tmp_path / "new.yaml"
    old.write_text(json.dumps(OLD))
    new.write_text("mine")
    result = CliRunner().invoke(main, ["import-mftcoder", str(old), str(new)])
    assert result.exit_code == 1
    assert new.read_text() == "mine"
    assert CliRunner().invoke(main, ["import-mftcoder", str(tmp_path / "none"), str(new)]).exit_code == 1
