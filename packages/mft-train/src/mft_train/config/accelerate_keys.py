"""Keys of accelerate's config files, and what happened to those that became no key of a run."""

LAUNCH = "it belongs to the launch now: mft-train launch --processes, --machines, --machine-rank, --main-address"
OWN = "the engine decides it itself"
UNUSED = "it has no effect on training"

# Keys that are mapped, by the section that they stand in ("" is the file itself).
MAPPED: dict[str, tuple[str, ...]] = {
    "": (
        "distributed_type",
        "mixed_precision",
        "num_processes",
        "dynamo_backend",
        "deepspeed_config",
        "fsdp_config",
        "megatron_lm_config",
    ),
    "deepspeed_config": (
        "zero_stage",
        "offload_optimizer_device",
        "offload_param_device",
        "gradient_accumulation_steps",
        "gradient_clipping",
        "deepspeed_config_file",
    ),
    "fsdp_config": (
        "fsdp_sharding_strategy",
        "fsdp_reshard_after_forward",
        "fsdp_offload_params",
        "fsdp_activation_checkpointing",
        "fsdp_auto_wrap_policy",
    ),
}
# Keys without a counterpart, and why.
GONE: dict[str, dict[str, str]] = {
    "": {
        "compute_environment": UNUSED,
        "debug": UNUSED,
        "downcast_bf16": "it is for TPUs",
        "enable_cpu_affinity": LAUNCH,
        "gpu_ids": "set CUDA_VISIBLE_DEVICES",
        "machine_rank": LAUNCH,
        "main_process_ip": LAUNCH,
        "main_process_port": LAUNCH,
        "main_training_function": UNUSED,
        "num_machines": LAUNCH,
        "rdzv_backend": LAUNCH,
        "same_network": LAUNCH,
        "tpu_env": "it is for TPUs",
        "tpu_use_cluster": "it is for TPUs",
        "tpu_use_sudo": "it is for TPUs",
        "use_cpu": "a run takes the GPU where there is one",
    },
    "deepspeed_config": {
        "deepspeed_exclusion_filter": LAUNCH,
        "deepspeed_hostfile": LAUNCH,
        "deepspeed_inclusion_filter": LAUNCH,
        "deepspeed_moe_layer_cls_names": OWN,
        "deepspeed_multinode_launcher": LAUNCH,
        "offload_optimizer_nvme_path": "nothing is offloaded to NVMe",
        "offload_param_nvme_path": "nothing is offloaded to NVMe",
        "zero3_init_flag": OWN,
        "zero3_save_16bit_model": "what is saved is always gathered and whole",
    },
    "fsdp_config": {
        "fsdp_backward_prefetch": OWN,
        "fsdp_backward_prefetch_policy": OWN,
        "fsdp_cpu_ram_efficient_loading": OWN,
        "fsdp_forward_prefetch": OWN,
        "fsdp_min_num_params": "the decoder layers are found in the model",
        "fsdp_state_dict_type": "what is saved is always gathered and whole",
        "fsdp_sync_module_states": OWN,
        "fsdp_transformer_layer_cls_to_wrap": "the decoder layers are found in the model",
        "fsdp_use_orig_params": OWN,
        "fsdp_version": "it is FSDP2",
    },
}
# fsdp_sharding_strategy by number and name: whether layers are let go of after the forward pass; None: never shared.
SHARDING: dict[str, bool | None] = {
    "1": True,
    "FULL_SHARD": True,
    "2": False,
    "SHARD_GRAD_OP": False,
    "3": None,
    "NO_SHARD": None,
}
DTYPES = {"no": "float32", "bf16": "bfloat16"}
