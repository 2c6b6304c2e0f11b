"""The PEFT adapter directory: its config judged, every tensor given its role and its base tensor."""

import re
from collections.abc import Iterable
from dataclasses import dataclass
from math import prod, sqrt
from pathlib import Path
from typing import Any

from mft_merge.errors import MergeError
from mft_merge.files.json_file import check_kinds, read_json
from mft_merge.files.tensor_file import FLOAT_TYPES, StoredTensor, read_tensor_file

PREFIX = "base_model.model."
# The end of an adapter key and the factor that it holds.
FACTOR_SUFFIXES = {
    ".lora_A.weight": "a",
    ".lora_B.weight": "b",
    ".lora_embedding_A": "embedding_a",
    ".lora_embedding_B": "embedding_b",
    ".lora_magnitude_vector": "magnitude",
    ".lora_B.bias": "bias",
}
TOKENS_SUFFIX = ".token_adapter.trainable_tokens_delta"
# PEFT settings that change what a merged weight is; each of them is refused by name.
UNSUPPORTED_SETTINGS = (
    "alora_invocation_tokens",
    "arrow_config",
    "kasa_config",
    "layer_replication",
    "monteclora_config",
    "use_bdlora",
    "use_qalora",
)
# Initialisations that leave the base weights alone; the others (pissa, olora, ...) train over a changed base.
BASE_KEEPING_INITS = (True, False, "gaussian", "eva", "orthogonal", "mica")


@dataclass(frozen=True, slots=True)
class LowRank:
    """One update, scale * B @ A, or for `num_experts` matrices at once.

    `a` is (num_experts * rank, in), `b` is (out, rank * num_experts), DoRA's `magnitude` is (out,). The live
    parameter has the update as (out, in), or as (in, out) where `is_transposed`; None says that only the shape of the
    weight can tell.
    """

    a: StoredTensor
    b: StoredTensor
    scale: float
    magnitude: StoredTensor | None = None
    is_transposed: bool | None = None
    num_experts: int = 1

    @property
    def rank(self) -> int:
        """The rank of one matrix of the update."""
        return self.a.shape[0] // self.num_experts

    @property
    def shape(self) -> tuple[int, int]:
        """(out, in) of one matrix of the update."""
        return self.b.shape[0], self.a.shape[1]


@dataclass(frozen=True, slots=True)
class RowValues:
    """Rows of an embedding, by the ids of their tokens, and the values that they have been trained to."""

    token_ids: tuple[int, ...]
    values: StoredTensor


@dataclass(frozen=True, slots=True)
class Adapter:
    """A LoRA adapter; the maps are keyed by the name of the parameter in the live model.

    `replacements` are whole tensors (modules_to_save, biases, resized embeddings); `base_copies` are the
    values over which an embedding's update was trained, saved beside it by PEFT; `shifts` are added to biases with
    their scale; `rows` are trained tokens. `parameter_factors` are keyed by the module that holds targeted
    parameters; which parameter each pair belongs to only the live model can tell.
    """

    adapter_dir: Path
    config: dict[str, Any]
    updates: dict[str, LowRank]
    replacements: dict[str, StoredTensor]
    base_copies: dict[str, StoredTensor]
    shifts: dict[str, tuple[StoredTensor, float]]
    rows: dict[str, RowValues]
    parameter_factors: dict[str, dict[str, StoredTensor]]


def read_adapter(adapter_dir: Path) -> Adapter:
    """The adapter in `adapter_dir`; refuses what a merge would get wrong."""
    config_path = adapter_dir / "adapter_config.json"
    if not config_path.is_file():
        if (adapter_dir / "config.json").is_file():
            raise MergeError(f"{adapter_dir} is a full model already, nothing to merge")
        raise MergeError(f"{adapter_dir} is no adapter directory: it has no adapter_config.json")
    config = read_json(config_path)
    _check_config(config, config_path)
    weights_path = adapter_dir / "adapter_model.safetensors"
    if not weights_path.is_file():
        raise MergeError("no adapter_model.safetensors", where=str(adapter_dir), fix="save the adapter as safetensors")
    tensors = read_tensor_file(weights_path).tensors
    for tensor in tensors.values():
        _check_tensor(tensor)
    roles = _roles(tensors)
    # PEFT also writes inner copies of an embedding whose single tokens are trained: what counts are the tokens.
    copies = {name: tensor for name, tensor in roles.base_copies.items() if name not in roles.tokens}
    updates, shifts, parameter_factors = {}, {}, {}
    for module, factors in roles.factors.items():
        if config.get("target_parameters") and not _is_targeted(module, config):
            parameter_factors[module] = factors
            continue
        updates[f"{module}.weight"] = low_rank(module, factors, config)
        if "bias" in factors:
            shifts[f"{module}.bias"] = factors["bias"], scale_of(module, config)
    rows = {name: _row_values(name, tensor, config) for name, tensor in roles.tokens.items()}
    if config.get("trainable_token_indices") and not rows:
        raise MergeError('the adapter has no tensor for its "trainable_token_indices"', where=str(weights_path))
    if not updates and not parameter_factors and not rows:
        raise MergeError("the adapter has no LoRA tensor", where=str(weights_path))
    return Adapter(adapter_dir, config, updates, roles.replacements, copies, shifts, rows, parameter_factors)


def pattern_value(patterns: dict[str, Any], module: str, default: Any) -> Any:
    """The value of the first pattern that matches the whole module name or its end after a dot, as PEFT matches."""
    for pattern, value in patterns.items():
        try:
            is_match = re.match(rf"(.*\.)?({pattern})$", module)
        except re.error as error:
            raise MergeError(f'the pattern "{pattern}" of the adapter config is no regular expression') from error
        if is_match:
            return value
    return default


def _check_config(config: dict[str, Any], path: Path) -> None:
    if config.get("peft_type") != "LORA":
        raise MergeError(f'an adapter of type "{config.get("peft_type")}" cannot be merged, only LORA', where=str(path))
    for setting in UNSUPPORTED_SETTINGS:
        if config.get(setting):
            raise MergeError(f'the adapter uses "{setting}", which this tool cannot merge', where=str(path))
    check_kinds(config, {"base_model_name_or_path": (str,), "rank_pattern": (dict,), "alpha_pattern": (dict,)}, path)
    for key, kind in (("rank_pattern", (int,)), ("alpha_pattern", (int, float))):
        patterns = config.get(key) or {}
        check_kinds(patterns, dict.fromkeys(patterns, kind), path)
    for key, kinds in (("r", int), ("lora_alpha", (int, float))):
        if not isinstance(config.get(key), kinds):
            raise MergeError(f'"{key}" is missing or no number', where=str(path))
    init = config.get("init_lora_weights", True)
    if init not in BASE_KEEPING_INITS:
        raise MergeError(
            f'the adapter was initialised by "{init}", which trains over changed base weights',
            where=str(path),
            fix="convert it with PEFT's path_initial_model_for_weight_conversion first",
        )


def _check_tensor(tensor: StoredTensor) -> None:
    if prod(tensor.shape) == 0:
        raise MergeError(
            f'adapter tensor "{tensor.name}" is empty',
            where=str(tensor.path),
            fix="save the adapter again with its parameters gathered (ZeRO-3 or FSDP leave such shards)",
        )
    if tensor.dtype not in FLOAT_TYPES:
        raise MergeError(f'adapter tensor "{tensor.name}" is of type {tensor.dtype}', where=str(tensor.path))


@dataclass(slots=True)
class _Roles:
    """Factors by module, the rest by the name of the parameter."""

    factors: dict[str, dict[str, StoredTensor]]
    replacements: dict[str, StoredTensor]
    base_copies: dict[str, StoredTensor]
    tokens: dict[str, StoredTensor]


def _roles(tensors: dict[str, StoredTensor]) -> _Roles:
    roles = _Roles({}, {}, {}, {})
    for key, tensor in tensors.items():
        if not key.startswith(PREFIX):
            raise unused(tensor)
        name = key.removeprefix(PREFIX)
        suffix = next((suffix for suffix in FACTOR_SUFFIXES if name.endswith(suffix)), None)
        if suffix:
            roles.factors.setdefault(name.removesuffix(suffix), {})[FACTOR_SUFFIXES[suffix]] = tensor
            continue
        if name.endswith(TOKENS_SUFFIX):
            roles.tokens[f"{name.removesuffix(TOKENS_SUFFIX)}.weight"] = tensor
            continue
        module, wrapper, parameter = _split_wrapper(name)
        if wrapper == "base_layer":
            roles.base_copies[f"{module}.{parameter}"] = tensor
        elif wrapper is None:
            roles.replacements[name] = tensor
        elif f"{PREFIX}{module}.{parameter}" not in tensors:
            # With a resized vocabulary PEFT also writes the two inner copies of a saved module; what counts is
            # the plain key beside them.
            raise unused(tensor)
    return roles


def _is_targeted(module: str, config: dict[str, Any]) -> bool:
    """Whether PEFT wrapped this module itself, and not a parameter of it: a parameter's name ends with its own."""
    targets = config.get("target_modules") or []
    if isinstance(targets, str):
        return targets == "all-linear" or bool(re.fullmatch(targets, module))
    return any(module == target or module.endswith(f".{target}") for target in targets)


def _row_values(name: str, tensor: StoredTensor, config: dict[str, Any]) -> RowValues:
    """The trained tokens of the embedding `name`, with their ids from the config."""
    wanted = config.get("trainable_token_indices")
    module = name.removesuffix(".weight")
    if isinstance(wanted, dict):
        found = [ids for key, ids in wanted.items() if module == key or module.endswith(f".{key}")]
        wanted = found[0] if len(found) == 1 else None
    if not isinstance(wanted, list) or len(tensor.shape) != 2 or len(set(wanted)) != tensor.shape[0]:
        raise MergeError(
            f'adapter tensor "{tensor.name}" does not fit "trainable_token_indices" of the config',
            where=str(tensor.path),
        )
    return RowValues(tuple(wanted), tensor)


def _split_wrapper(name: str) -> tuple[str, str | None, str]:
    """The module, PEFT's wrapper around it (or None) and the parameter of a tensor name."""
    module, _, parameter = name.rpartition(".")
    outer, _, last = module.rpartition(".")
    if last in ("base_layer", "modules_to_save", "original_module"):
        return outer, last, parameter
    return module, None, parameter


def low_rank(module: str, factors: dict[str, StoredTensor], config: dict[str, Any], *, num_experts: int = 1) -> LowRank:
    """The update that two factors of a module make, with its scale; what does not fit together is an error."""
    is_embedding = "embedding_a" in factors or "embedding_b" in factors
    prefix = "embedding_" if is_embedding else ""
    expected = {f"{prefix}a", f"{prefix}b"} | ({"magnitude"} if config.get("use_dora") and num_experts == 1 else set())
    expected |= {"bias"} if config.get("lora_bias") else set()
    some = next(iter(factors.values()))
    if set(factors) != expected:
        wrong = ", ".join(sorted(expected ^ set(factors)))
        raise MergeError(f'the LoRA tensors of "{module}" do not fit together ({wrong})', where=str(some.path))
    a, b = factors[f"{prefix}a"], factors[f"{prefix}b"]
    rank = _rank_of(module, config)
    if len(a.shape) != 2 or len(b.shape) != 2 or {a.shape[0], b.shape[1]} != {rank * num_experts}:
        raise MergeError(
            f'the LoRA tensors of "{module}" are {_shapes((a, b))}, not of the rank {rank} that the config gives',
            where=str(a.path),
        )
    is_transposed = True if is_embedding else None
    return LowRank(a, b, scale_of(module, config), factors.get("magnitude"), is_transposed, num_experts)


def scale_of(module: str, config: dict[str, Any]) -> float:
    """What the product of a module's factors is multiplied by."""
    rank = _rank_of(module, config)
    alpha = pattern_value(config.get("alpha_pattern") or {}, module, config["lora_alpha"])
    return alpha / (sqrt(rank) if config.get("use_rslora") else rank)


def _rank_of(module: str, config: dict[str, Any]) -> int:
    return pattern_value(config.get("rank_pattern") or {}, module, config["r"])


def unused(tensor: StoredTensor) -> MergeError:
    """The error for an adapter tensor that has no place in the merged model."""
    return MergeError(f'adapter tensor "{tensor.name}" belongs to no tensor of the base', where=str(tensor.path))


def _shapes(tensors: Iterable[StoredTensor]) -> str:
    return " and ".join("x".join(map(str, tensor.shape)) for tensor in tensors)
