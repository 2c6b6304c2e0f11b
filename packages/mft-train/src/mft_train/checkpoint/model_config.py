"""The config of a full model, so written that every version of transformers in use takes the same model from it."""

from __future__ import annotations

from typing import Any

# Where a model type of transformers 4 keeps the base of the rotary angles, and the share of a head that turns.
OLD_NAMES = {"gpt_neox": ("rotary_emb_base", "rotary_pct"), "gpt_neox_japanese": ("rotary_emb_base", "rotary_pct")}
USUAL_NAMES = ("rope_theta", "partial_rotary_factor")


def with_old_keys(config: dict[str, Any]) -> dict[str, Any]:
    """The config with what transformers 4 reads beside what version 5 writes; a key that is there stays.

    Version 5 has `rope_parameters` and `dtype` alone. Version 4 passes over them without a word, takes a base of 10,000
    and no scaling, and so another model. Configs within the config are treated alike.
    """
    config = {
        key: with_old_keys(value) if key.endswith("_config") and isinstance(value, dict) else value
        for key, value in config.items()
    }
    model_type = config.get("model_type")
    added = old_rope_keys(config.get("rope_parameters"), OLD_NAMES.get(str(model_type), USUAL_NAMES))
    if model_type == "qwen3_moe":
        added["num_experts"] = config.get("num_local_experts")
    if isinstance(config.get("dtype"), str):
        added["torch_dtype"] = config["dtype"]
    return config | {key: value for key, value in added.items() if value is not None and config.get(key) is None}


def old_rope_keys(rope: Any, names: tuple[str, str]) -> dict[str, Any]:
    """Version 4's keys for `rope_parameters`; of sets for several types of layer those of full attention count."""
    if not isinstance(rope, dict):
        return {}
    full, sliding = rope.get("full_attention"), rope.get("sliding_attention")
    chosen = full if isinstance(full, dict) else rope
    keys = {old: chosen.get(new) for old, new in zip(names, USUAL_NAMES, strict=True)}
    if chosen.get("rope_type", "default") != "default":
        keys["rope_scaling"] = {key: value for key, value in chosen.items() if key not in USUAL_NAMES}
    if isinstance(sliding, dict):
        keys["rope_local_base_freq"] = sliding.get("rope_theta")
    return keys
