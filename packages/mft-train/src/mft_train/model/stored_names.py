"""Which tensors of a model's files make up each of its weights, by the rules that transformers loads them by."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Container, Iterable, Mapping

    from transformers import PreTrainedModel


def stored_names(model: PreTrainedModel, names: Iterable[str]) -> dict[str, list[str]] | None:
    """The names in files of each weight of a model; laid flat one after the other, those tensors are the weight.

    Most weights are one tensor. Experts are a tensor each in the files of most families, and one weight in the model.
    None where transformers makes a weight from tensors in another way.
    """
    try:
        from transformers.conversion_mapping import get_model_conversion_mapping
        from transformers.core_model_loading import WeightConverter, WeightRenaming, rename_source_key
    except ImportError:  # transformers 4
        is_renamed = bool(getattr(model, "_checkpoint_conversion_mapping", None))
        return None if is_renamed else {name: [name] for name in names}
    rules = get_model_conversion_mapping(model)
    renamings = [rule for rule in rules if isinstance(rule, WeightRenaming)]
    converters = [rule for rule in rules if isinstance(rule, WeightConverter)]
    own_names: Container[str] = model.state_dict().keys()
    found: dict[str, list[str]] = {}
    parts: dict[str, dict[str, list[str]]] = {}  # of joined weights: names by the pattern that they match
    for stored in sorted(names, key=by_number):
        name, pattern = rename_source_key(stored, renamings, converters)
        if name not in own_names and stored in own_names:
            name, pattern = stored, None
        if pattern is None:
            found.setdefault(name, []).append(stored)
        else:
            parts.setdefault(name, {}).setdefault(pattern, []).append(stored)
    joined = {pattern: rule for rule in converters for pattern in rule.source_patterns}
    for name, by_pattern in parts.items():
        order = joined_order(joined[next(iter(by_pattern))], by_pattern)
        if order is None or name in found:
            return None
        found[name] = order
    return found


def by_number(name: str) -> list[tuple[bool, int, str]]:
    """A key that sorts names by their parts, numbers among these by value."""
    return [(part.isdigit(), int(part) if part.isdigit() else 0, part) for part in name.split(".")]


def joined_order(rule: Any, by_pattern: Mapping[str, list[str]]) -> list[str] | None:
    """The order in which tensors follow each other in the weight that a rule joins them to, None if they do not."""
    if len(rule.target_patterns) != 1 or set(by_pattern) != set(rule.source_patterns):
        return None
    lists = [by_pattern[pattern] for pattern in rule.source_patterns]
    match [(type(step).__name__, getattr(step, "dim", None)) for step in rule.operations]:
        case [("Concatenate", 0)]:
            return [name for names in lists for name in names]
        case [("MergeModulelist", 0)] if len(lists) == 1:
            return lists[0]
        # Stacked, each kind by itself, then joined within an expert.
        case [("MergeModulelist", 0), ("Concatenate", 1)] if len({len(names) for names in lists}) == 1:
            return [name for expert in zip(*lists, strict=True) for name in expert]
    return None
