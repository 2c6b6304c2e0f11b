"""What the merged model will hold: the source, type and update of every output tensor, judged before any write."""

from collections.abc import Iterator
from dataclasses import dataclass
from math import prod
from typing import Any

from mft_merge.adapter import Adapter, LowRank, unused
from mft_merge.base_model import BaseModel
from mft_merge.errors import MergeError
from mft_merge.tensor_file import FLOAT_TYPES, ITEM_BYTES, StoredTensor, num_rows, payload_chunks, read_rows

# Modules that read token embeddings, by their last name, and the output head that may share their weight.
TIED_HEADS = {"embed_tokens": "lm_head", "wte": "lm_head", "word_embeddings": "lm_head", "embed_in": "embed_out"}
# Architectures whose linear layers store (in, out); where a weight is square only this can tell.
CONV1D_MODEL_TYPES = ("gpt2", "openai-gpt", "decision_transformer", "imagegpt")


@dataclass(frozen=True, slots=True)
class OutputTensor:
    """One tensor of the merged model.

    `source` is the base's tensor or the one that the adapter carries in its place; `is_transposed` says that the
    update is added as (in, out). Without an update and with the source's own type the payload is copied as it is.
    """

    name: str
    source: StoredTensor
    dtype: str
    update: LowRank | None
    is_transposed: bool

    @property
    def is_copy(self) -> bool:
        return self.update is None and self.dtype == self.source.dtype

    @property
    def num_bytes(self) -> int:
        if self.dtype == self.source.dtype:
            return self.source.num_bytes
        return prod(self.source.shape) * ITEM_BYTES[self.dtype]


@dataclass(frozen=True, slots=True)
class MergePlan:
    """Output tensors by shard file name, in the order of their payloads, and the config values that change."""

    shards: dict[str, list[OutputTensor]]
    config_changes: dict[str, Any]

    def tensors(self) -> Iterator[OutputTensor]:
        """Every output tensor, shard by shard."""
        for tensors in self.shards.values():
            yield from tensors


def make_plan(adapter: Adapter, base: BaseModel, dtype: str) -> MergePlan:
    """The plan of the merge; `dtype` is a safetensors code, or "keep" for each base tensor's own."""
    embedding, head = _embedding_and_head(base)
    changed = set(adapter.updates) | set(adapter.replacements) | set(adapter.base_copies)
    is_tied = embedding is not None and base.config.get("tie_word_embeddings", head not in base.tensors)
    is_untied_now = is_tied and bool(changed & {embedding, head}) and not _same_on_both_sides(adapter, embedding, head)
    for name in sorted(changed):
        if name not in base.tensors and not (is_tied and name == head):
            raise unused(_any_tensor(adapter, name))
    shards = {
        shard.path.name: [_output(name, adapter, base, dtype, (embedding, head)) for name in shard.tensors]
        for shard in base.shards
    }
    config_changes: dict[str, Any] = {}
    if is_untied_now:
        if "tie_word_embeddings" not in base.config and "text_config" in base.config:
            raise MergeError("untying the embeddings of a nested config is not supported", where=str(base.base_dir))
        config_changes["tie_word_embeddings"] = False
        if head not in base.tensors:
            last = list(shards)[-1]
            shards[last].append(_output(head, adapter, base, dtype, (embedding, head)))
    vocab_size = _vocab_size(shards, base, embedding, head)
    if vocab_size is not None and vocab_size != base.tensors[embedding].shape[0]:
        config_changes["vocab_size"] = vocab_size
    return MergePlan(shards, config_changes)


def _embedding_and_head(base: BaseModel) -> tuple[str | None, str | None]:
    """The names of the token embedding's weight and of the output head that may be tied to it."""
    found = [name for name in base.tensors if name.endswith(".weight") and name.split(".")[-2] in TIED_HEADS]
    if len(found) != 1:
        return None, None
    return found[0], TIED_HEADS[found[0].split(".")[-2]] + ".weight"


def _output(
    name: str, adapter: Adapter, base: BaseModel, dtype: str, vocabulary_names: tuple[str | None, str | None]
) -> OutputTensor:
    """The output tensor `name`; a tied head that the base does not store starts from the embedding."""
    embedding, _ = vocabulary_names
    base_tensor = base.tensors.get(name) or base.tensors[embedding]
    source = adapter.replacements.get(name) or adapter.base_copies.get(name)
    if source is None:
        source = base_tensor if name in base.tensors else adapter.base_copies.get(embedding, base_tensor)
    may_resize = name in vocabulary_names and source.shape[1:] == base_tensor.shape[1:]
    if source.shape != base_tensor.shape and not may_resize:
        raise MergeError(
            f'adapter tensor "{source.name}" has shape {list(source.shape)}, the base has {list(base_tensor.shape)}',
            where=str(source.path),
        )
    update = adapter.updates.get(name)
    is_float = base_tensor.dtype in FLOAT_TYPES
    if not is_float and (update or source is not base_tensor):
        raise MergeError(f'"{name}" is of type {base_tensor.dtype}, which cannot be merged', where=str(base.base_dir))
    out_dtype = base_tensor.dtype if dtype == "keep" or not is_float else dtype
    is_transposed = update is not None and _is_transposed(name, source, update, adapter, base)
    return OutputTensor(name, source, out_dtype, update, is_transposed)


def _is_transposed(name: str, source: StoredTensor, update: LowRank, adapter: Adapter, base: BaseModel) -> bool:
    """Whether the weight is stored (in, out); checks the update's shapes on the way."""
    straight = (update.b.shape[0], update.a.shape[1])
    if update.is_embedding:
        fits, is_transposed = source.shape == straight[::-1], True
    elif straight[0] == straight[1]:
        # PEFT keeps one fan_in_fan_out for all layers and the last layer set it: alone it cannot be trusted.
        is_conv1d = base.config.get("model_type") in CONV1D_MODEL_TYPES
        fits, is_transposed = source.shape == straight, is_conv1d or bool(adapter.config.get("fan_in_fan_out"))
    else:
        fits, is_transposed = source.shape in (straight, straight[::-1]), source.shape != straight
    if not fits:
        raise MergeError(
            f'the update of "{name}" has shape {list(straight)}, the weight has {list(source.shape)}',
            where=str(update.a.path),
            fix="check that this is the base that the adapter was trained on",
        )
    if update.magnitude and update.magnitude.shape != straight[:1]:
        raise MergeError(
            f'adapter tensor "{update.magnitude.name}" has shape {list(update.magnitude.shape)}, not [{straight[0]}]',
            where=str(update.a.path),
        )
    return is_transposed


def _same_on_both_sides(adapter: Adapter, embedding: str, head: str) -> bool:
    """Whether the adapter changes a tied embedding and its head alike, so that they stay tied."""
    if embedding in adapter.replacements and head in adapter.replacements:
        pair = adapter.replacements[embedding], adapter.replacements[head]
        return pair[0].shape == pair[1].shape and all(
            one == other for one, other in zip(*map(payload_chunks, pair), strict=True)
        )
    if embedding in adapter.updates and head in adapter.updates:
        one, other = adapter.updates[embedding], adapter.updates[head]
        if one.magnitude or other.magnitude or one.scale != other.scale:
            return False
        return _is_transpose(one.a, other.b) and _is_transpose(one.b, other.a)
    return False


def _is_transpose(one: StoredTensor, other: StoredTensor) -> bool:
    if one.shape != other.shape[::-1] or one.dtype != other.dtype:
        return False
    return bool((read_rows(other, 0, num_rows(other)) == read_rows(one, 0, num_rows(one)).T).all())


def _vocab_size(
    shards: dict[str, list[OutputTensor]], base: BaseModel, embedding: str | None, head: str | None
) -> int | None:
    """The rows of the embedding, on which it must agree with the head; None where the embedding is not known."""
    outputs = (tensor for tensors in shards.values() for tensor in tensors)
    rows = {tensor.name: tensor.source.shape[0] for tensor in outputs if tensor.name in (embedding, head)}
    if len(set(rows.values())) > 1:
        raise MergeError(
            f'"{embedding}" has {rows[embedding]} rows and "{head}" has {rows[head]}',
            where=str(base.base_dir),
            fix="save both with the adapter",
        )
    return rows.get(embedding)


def _any_tensor(adapter: Adapter, name: str) -> StoredTensor:
    if name in adapter.updates:
        return adapter.updates[name].a
    return adapter.replacements.get(name) or adapter.base_copies[name]
