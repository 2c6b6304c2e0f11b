"""The model's config, so written that every reader in use takes the same model from it."""

from typing import Any

# Keys under which transformers before version 5 looks for the base of the rotary angles and for the share of a
# head that turns, where a model type has its own.
OLD_THETA_KEYS = {"gpt_neox": "rotary_emb_base", "gpt_neox_japanese": "rotary_emb_base"}
OLD_PARTIAL_KEYS = {"gpt_neox": "rotary_pct", "gpt_neox_japanese": "rotary_pct"}
# Keys that version 5 renamed, by model type: the old one and the new.
RENAMED_KEYS = {"qwen3_moe": ("num_experts", "num_local_experts")}


def with_old_keys(config: dict[str, Any]) -> dict[str, Any]:
    """The config with the keys that transformers before version 5 and readers made for it expect, too.

    Version 5 writes `rope_parameters` and `dtype` only. Older readers know neither and silently take a `rope_theta` of
    10,000 and no scaling; they look for `rope_theta`, `rope_scaling`, `partial_rotary_factor` and
    `torch_dtype`. Configs inside the config (`text_config`, ...) are treated alike. A key that is there stays.
    """
    config = {key: with_old_keys(value) if _is_config(key, value) else value for key, value in config.items()}
    model_type = config.get("model_type") or ""
    added = _old_rope_keys(model_type, config.get("rope_parameters"))
    if model_type in RENAMED_KEYS:
        old, new = RENAMED_KEYS[model_type]
        added[old] = config.get(new)
    if isinstance(config.get("dtype"), str):
        added["torch_dtype"] = config["dtype"]
    return config | {key: value for key, value in added.items() if config.get(key) is None and value is not None}


def _is_config(key: str, value: Any) -> bool:
    return key.endswith("_config") and isinstance(value, dict)


def _old_rope_keys(model_type: str, rope: Any) -> dict[str, Any]:
    """The keys of older readers that say what `rope`, the value of `rope_parameters`, says."""
    if not isinstance(rope, dict):
        return {}
    # One set for each type of layer: older readers take that of full attention, and the base of sliding attention.
    full, sliding = rope.get("full_attention"), rope.get("sliding_attention")
    keys = _flat_keys(model_type, full if isinstance(full, dict) else rope)
    if isinstance(sliding, dict) and "rope_theta" in sliding:
        keys["rope_local_base_freq"] = sliding["rope_theta"]
    return keys


def _flat_keys(model_type: str, rope: dict[str, Any]) -> dict[str, Any]:
    keys: dict[str, Any] = {}
    if "rope_theta" in rope:
        keys[OLD_THETA_KEYS.get(model_type, "rope_theta")] = rope["rope_theta"]
    if "partial_rotary_factor" in rope:
        keys[OLD_PARTIAL_KEYS.get(model_type, "partial_rotary_factor")] = rope["partial_rotary_factor"]
    if rope.get("rope_type", "default") != "default":
        keys["rope_scaling"] = {
            key: value for key, value in rope.items() if key not in ("rope_theta", "partial_rotary_factor")
        }
    return keys
