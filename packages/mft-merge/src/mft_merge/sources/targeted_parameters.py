"""PEFT's `target_parameters`: which pair of factors belongs to which parameter of a module, and in which layout.

PEFT wraps a module once for each parameter that is targeted, in the order of their declaration: the factors of the
innermost wrapper (`experts.base_layer.lora_A`) are those of the first parameter.
"""

from typing import Any

from mft_merge.errors import MergeError
from mft_merge.files.tensor_file import StoredTensor
from mft_merge.sources.adapter import Adapter, LowRank, low_rank
from mft_merge.sources.live_model import LiveModel

WRAPPER = ".base_layer"


def parameter_updates(adapter: Adapter, live: LiveModel) -> dict[str, LowRank]:
    """The updates of targeted parameters, by the name of the parameter in the live model."""
    by_depth: dict[str, dict[int, dict[str, StoredTensor]]] = {}
    for name, factors in adapter.parameter_factors.items():
        module = name
        while module.endswith(WRAPPER):
            module = module.removesuffix(WRAPPER)
        by_depth.setdefault(module, {})[(len(name) - len(module)) // len(WRAPPER)] = factors
    updates = {}
    for module, pairs in by_depth.items():
        targeted = [name for name in live.shapes if _is_targeted(name, module, adapter.config["target_parameters"])]
        if sorted(pairs) != list(range(len(targeted))):
            some = next(iter(next(iter(pairs.values())).values()))
            raise MergeError(
                f'"{module}" has {len(pairs)} pairs of factors for {len(targeted)} targeted parameters',
                where=str(some.path),
            )
        for depth, parameter in enumerate(reversed(targeted)):
            updates[parameter] = _update(parameter, pairs[depth], adapter.config, live)
    return updates


def _is_targeted(parameter: str, module: str, targets: list[str]) -> bool:
    owner, _, _ = parameter.rpartition(".")
    return owner == module and any(parameter == target or parameter.endswith(f".{target}") for target in targets)


def _update(parameter: str, factors: dict[str, StoredTensor], config: dict[str, Any], live: LiveModel) -> LowRank:
    shape = live.shapes[parameter]
    some = next(iter(factors.values()))
    if len(shape) == 2:
        return low_rank(parameter, factors, config)
    if len(shape) != 3 or shape[0] == 1:
        raise MergeError(
            f'"{parameter}" has shape {list(shape)}, which no update can be added to', where=str(some.path)
        )
    update = low_rank(parameter, factors, config, num_experts=shape[0])
    is_transposed = _is_transposed(update, parameter, config, live)
    return LowRank(update.a, update.b, update.scale, None, is_transposed, shape[0])


def _is_transposed(update: LowRank, parameter: str, config: dict[str, Any], live: LiveModel) -> bool:
    """Whether the parameter has the update as (experts, in, out); where the shape cannot tell, PEFT's version must."""
    _, rows, columns = live.shapes[parameter]
    if {update.shape, update.shape[::-1]} != {(rows, columns), (columns, rows)}:
        raise MergeError(
            f'the update of "{parameter}" has shape {list(update.shape)}, the weight has {[rows, columns]}',
            where=str(update.a.path),
            fix="check that this is the base that the adapter was trained on",
        )
    if rows != columns:
        return update.shape != (rows, columns)
    version = tuple(int(word) for word in str(config.get("peft_version") or "").split(".")[:2] if word.isdigit())
    if version >= (0, 20):
        return parameter.rpartition(".")[0] in live.transposed_modules
    if (0, 17) <= version <= (0, 18):
        return True
    raise MergeError(
        f'"{parameter}" is square, and PEFT {config.get("peft_version") or "of an unknown version"} does not tell '
        "which side of it the factors are of",
        where=str(update.a.path),
        fix="load the adapter with that PEFT, and merge it there",
    )
