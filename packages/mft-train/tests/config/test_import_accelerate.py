"""Config files of accelerate: MFTCoder's two, and each of their keys mapped, noted, or refused by name."""

import json

import pytest
import yaml
from click.testing import CliRunner

from mft_train.cli import main
from mft_train.config.accelerate_keys import GONE
from mft_train.config.config_file import read_config

OLD = {
    "data_paths": "[/data/code-exercises]",
    "output_dir": "out/",
    "pretrained_model_path": "base/",
    "peft_type": "lora",
    "gradient_accumulation_steps": 2,
    "per_device_train_batch_size": 1,
}
# The keys and values of the files that MFTCoder 0.5 came with.
COMMON = {"compute_environment": "LOCAL_MACHINE", "downcast_bf16": "no", "dynamo_backend": "NO", "machine_rank": 0}
COMMON |= {"main_training_function": "main", "megatron_lm_config": {}, "mixed_precision": "bf16", "num_machines": 1}
COMMON |= {"rdzv_backend": "static", "same_network": True, "use_cpu": False}
DEEPSPEED = {
    **COMMON,
    "deepspeed_config": {
        "gradient_accumulation_steps": 1,
        "gradient_clipping": 0.5,
        "offload_optimizer_device": "cpu",
        "offload_param_device": "none",
        "zero3_init_flag": False,
        "zero3_save_16bit_model": True,
        "zero_stage": 2,
    },
    "distributed_type": "DEEPSPEED",
    "fsdp_config": {},
    "num_processes": 8,
}
FSDP = {
    **COMMON,
    "deepspeed_config": {},
    "distributed_type": "FSDP",
    "fsdp_config": {
        "fsdp_auto_wrap_policy": "TRANSFORMER_BASED_WRAP",
        "fsdp_backward_prefetch_policy": "BACKWARD_PRE",
        "fsdp_offload_params": False,
        "fsdp_sharding_strategy": 1,
        "fsdp_state_dict_type": "FULL_STATE_DICT",
        "fsdp_transformer_layer_cls_to_wrap": "LlamaDecoderLayer",
    },
    "num_processes": 2,
}


@pytest.fixture
def convert(tmp_path):
    def convert(values, *options, **old_settings):
        old, new, file = tmp_path / "old.json", tmp_path / "new.yaml", tmp_path / "accelerate.yaml"
        new.unlink(missing_ok=True)
        old.write_text(json.dumps(OLD | old_settings))
        file.write_text(values if isinstance(values, str) else yaml.safe_dump(values))
        command = ["import-mftcoder", str(old), str(new), "--accelerate", str(file), *options]
        result = CliRunner().invoke(main, command)
        assert new.exists() == (result.exit_code == 0)
        if result.exit_code:
            return None, result.stderr
        return read_config(new), dict(line.split(": ", 1) for line in result.stderr.splitlines())

    return convert


def changed(file, section, **settings):
    return file | {section: file[section] | settings}


def test_mftcoders_deepspeed_file(convert):
    config, notes = convert(DEEPSPEED)
    distributed = config.distributed
    assert (distributed.engine, distributed.stage) == ("deepspeed", 2)
    assert (distributed.offload_optimizer, distributed.offload_parameters) == (True, False)
    assert (config.max_grad_norm, config.dtype, config.global_batch_size) == (0.5, "bfloat16", 16)
    known = {name: text for name, text in GONE[""].items() if name in DEEPSPEED}
    for name, text in known.items():
        assert notes[name] == f"no key: {text}"
    assert notes["deepspeed_config.zero3_save_16bit_model"].startswith("no key: ")
    assert notes["deepspeed_config.gradient_accumulation_steps"].startswith("no key: ")
    assert "fsdp_config" not in notes
    assert convert(DEEPSPEED, "--processes", "4")[0].global_batch_size == 8


def test_mftcoders_fsdp_file(convert):
    config, notes = convert(FSDP)
    assert (config.distributed.engine, config.distributed.reshard_after_forward) == ("fsdp", True)
    assert (config.dtype, config.global_batch_size) == ("bfloat16", 4)
    assert {f"fsdp_config.{name}" for name in GONE["fsdp_config"] if name in FSDP["fsdp_config"]} < set(notes)
    assert "peft_type" not in notes
    config, notes = convert(FSDP, peft_type="qlora")
    assert (config.method, config.distributed.engine) == ("qlora", "fsdp")
    assert "peft_type" not in notes


@pytest.mark.parametrize(
    ("values", "distributed"),
    [
        (changed(DEEPSPEED, "deepspeed_config", zero_stage=0), {"engine": "ddp"}),
        (
            changed(DEEPSPEED, "deepspeed_config", zero_stage=3, offload_param_device="cpu"),
            {"engine": "deepspeed", "stage": 3, "offload_optimizer": True, "offload_parameters": True},
        ),
        (
            changed(DEEPSPEED, "deepspeed_config", offload_param_device="cpu", offload_optimizer_device="none"),
            {"engine": "deepspeed", "stage": 2},
        ),
        (
            changed(DEEPSPEED, "deepspeed_config", deepspeed_config_file="ds.json", offload_optimizer_device=None),
            {"engine": "deepspeed", "stage": 2, "deepspeed_config": "ds.json"},
        ),
        (changed(FSDP, "fsdp_config", fsdp_sharding_strategy="SHARD_GRAD_OP"), {"reshard_after_forward": False}),
        (changed(FSDP, "fsdp_config", fsdp_sharding_strategy=3), {"engine": "ddp"}),
        (changed(FSDP, "fsdp_config", fsdp_offload_params=True), {"engine": "fsdp", "offload_parameters": True}),
        (COMMON | {"distributed_type": "MULTI_GPU"}, {"engine": "auto"}),
    ],
)
def test_what_is_shared(convert, values, distributed):
    config, notes = convert(values)
    assert config is not None, notes
    assert {name: getattr(config.distributed, name) for name in distributed} == distributed


def test_recomputing_and_precision(convert):
    assert convert(changed(FSDP, "fsdp_config", fsdp_activation_checkpointing=True))[0].gradient_checkpointing is True
    assert convert(FSDP | {"mixed_precision": "no"})[0].dtype == "float32"
    assert convert(yaml.safe_dump(FSDP).replace("mixed_precision: bf16", "mixed_precision: no"))[0].dtype == "float32"


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (FSDP | {"mixed_precision": "fp16"}, "mixed_precision is fp16, which does not run here"),
        (FSDP | {"distributed_type": "MEGATRON_LM"}, "distributed_type is MEGATRON_LM, which does not run here"),
        (FSDP | {"megatron_lm_config": {"megatron_lm_tp_degree": 2}}, "megatron_lm_config is set"),
        (FSDP | {"num_processes": "many"}, "num_processes is 'many'"),
        (FSDP | {"num_proceses": 2}, '"num_proceses" is not a key of accelerate\'s config'),
        (changed(FSDP, "fsdp_config", fsdp_sharding_strategy="HYBRID_SHARD"), "fsdp_sharding_strategy is HYBRID_SHARD"),
        (changed(DEEPSPEED, "deepspeed_config", zero_stage=4), "deepspeed_config.zero_stage is 4"),
        (changed(DEEPSPEED, "deepspeed_config", offload_param_device="nvme"), "offload_param_device is nvme"),
        (changed(DEEPSPEED, "deepspeed_config", zero_stge=3), 'did you mean "zero_stage"?'),
        (changed(DEEPSPEED, "deepspeed_config", gradient_clipping=0), '"max_grad_norm" is 0'),
        ("[1]", "accelerate's config is not a mapping"),
        ("a: [", "accelerate's config is not YAML"),
    ],
)
def test_what_does_not_run_is_refused_by_name(convert, values, message):
    config, told = convert(values)
    assert config is None
    assert len(told.splitlines()) == 1
    assert message in told
