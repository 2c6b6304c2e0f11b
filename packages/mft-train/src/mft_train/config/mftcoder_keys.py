"""MFTCoder's training arguments: their defaults, the keys here that they became, and what happened to the others."""

from typing import Any

MFT_05: dict[str, Any] = {
    "task_weights": None,
    "data_split": "98,2,0",
    "padding_mode": "padding",
    "tokenize_mode": "sft",
    "weighted_loss_mode": "case3",
    "peft_type": "qlora",
    "lora_rank": 96,
    "lora_alpha": 32,
    "lora_dropout": 0.05,
    "target_modules": None,
    "per_device_train_batch_size": 8,
    "per_device_eval_batch_size": 8,
    "learning_rate": 5e-5,
    "min_lr": 5e-6,
    "weight_decay": 0.01,
    "gradient_accumulation_steps": 1,
    "lr_scheduler_type": "cosine",
    "num_warmup_steps": 0.05,
    "num_train_epochs": 4,
    "seed": 1234,
    "seq_length": 4096,
    "log_interval": 10,
    "checkpointing_steps": 100,
    "evaluation_steps": 100,
    "max_train_steps": None,
    "coba_warmup_steps": 100,
    "coba_history_length": 200,
    "coba_tau": 5,
    "coba_update_interval": 1,
    "coba_sample_valid_num": 1,
    "attn_implementation": "flash_attention_2",
    "early_stopping": True,
    "early_stopping_stall_num": 5,
    "saving_limit": None,
    "init_timeout_seconds": 3600,
}
ADAPTER_KEYS = ("peft_type", "lora_rank", "lora_alpha", "lora_dropout", "target_modules")
SELF_PACED = {
    "selfpaced_interval": 1,
    "selfpaced_history_length": 100,
    "selfpaced_sample_valid_num": 1,
    "selfpaced_scale_factor": 50,
}
# Defaults of the arguments that an import reads, by the program and version that the old file was for.
DEFAULTS: dict[str, dict[str, Any]] = {
    "mft-0.5": MFT_05,
    "mpt-0.5": {name: value for name, value in MFT_05.items() if name not in ADAPTER_KEYS},
    "mft-0.3": {**MFT_05, **SELF_PACED, "weight_decay": 0.1, "num_warmup_steps": 300},
}
REQUIRED = ("data_paths", "output_dir", "pretrained_model_path")

# Old key: new key, with the value as it is.
SAME: dict[str, str] = {
    "pretrained_model_path": "model",
    "output_dir": "output",
    "learning_rate": "learning_rate",
    "weight_decay": "weight_decay",
    "seed": "seed",
    "log_interval": "log_interval",
    "checkpointing_steps": "checkpoint_interval",
    "init_timeout_seconds": "timeout_seconds",
    "evaluation_steps": "validation_interval",
}

NO_EFFECT = "it had no effect in MFTCoder"
IN_BUILD = "it belongs to the dataset now, see data_paths"
# Old keys that became no key here, and why.
GONE: dict[str, str] = {
    "tb_dir": "TensorBoard files are written to tensorboard/ in the run directory, see trackers",
    "model_type": "the architecture is read from the model",
    "model_name": "the architecture is read from the model",
    "load_raw_dataset": "there is one dataset format, written by mft-data build from JSONL",
    "data_weights": NO_EFFECT,
    "low_cpu_mem_usage": NO_EFFECT,
    "use_xformers": NO_EFFECT,
    "trust_remote_code": NO_EFFECT,
    "use_slow_tokenizer": NO_EFFECT,
    "use_random_sampler": NO_EFFECT,
    "world_size": "the number of processes comes from --processes or the launcher",
    "quantization": "a quantised base is method qlora, which peft_type says; 8bit is quantization.type int8",
    "tokenizer_type": "the tokenizer is the dataset's",
    "per_device_eval_batch_size": "validation takes micro_batch_size rows in a forward pass",
    "resume_from_checkpoint": "use mft-train launch --resume, which restores more than the weights",
    "auto_resume": "use mft-train launch --resume",
    "epoch_checkpointing": "checkpoints are taken every checkpoint_interval steps",
    "shuffle_before_split": "mft-data build holds out conversations at random, by its --seed",
    "use_dynamic_padding": "rows are never padded",
    "role_markers": "it belongs to the dataset now: mft-data build --role-marker",
    "eos_token": "it belongs to the dataset now: mft-data build --eos-token",
    "pad_token": "rows are never padded",
    "distributed_type": "its config file of accelerate says more: import-mftcoder --accelerate FILE",
    "weight_by_num_documents": "use mixture or repeats to say how often a task is drawn",
    "make_vocab_size_divisible_by": NO_EFFECT,
    "model_parallel_size": NO_EFFECT,
    "save_transformers_model": "a full model is always saved as one",
    "padded_vocab_size": NO_EFFECT,
    "tokenize_mode": IN_BUILD,
    "seq_length": IN_BUILD,
    "data_split": IN_BUILD,
    "padding_mode": IN_BUILD,
}
# The reductions of weighted_loss_mode, with the balancer.
LOSS_MODES: dict[str, tuple[str, str]] = {
    "case1": ("token_mean", "static"),
    "case2": ("sample_mean", "static"),
    "case3": ("task_mean", "static"),
    "case4": ("task_sample_mean", "static"),
    "coba": ("task_mean", "coba"),
    "selfpaced": ("task_mean", "self_paced"),
}
# lr_scheduler_type: schedule, and whether warm-up goes before it.
SCHEDULES: dict[str, tuple[str, bool]] = {
    "cosine": ("cosine", True),
    "linear": ("linear", True),
    "constant": ("constant", False),
    "constant_with_warmup": ("constant", True),
}
