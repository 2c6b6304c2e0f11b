"""What the merged model will hold: the source, type and changes of every output tensor, judged before any write."""

from collections.abc import Iterator
from dataclasses import dataclass
from math import prod
from typing import Any

from mft_merge.errors import MergeError
from mft_merge.files.tensor_file import FLOAT_TYPES, ITEM_BYTES, StoredTensor, num_rows, payload_chunks, read_rows
from mft_merge.planning.changes import TIED_HEADS, Block, Change
from mft_merge.planning.weighted import Combination
from mft_merge.sources.adapter import LowRank, RowValues, unused
from mft_merge.sources.base_model import SINGLE_NAME, BaseModel
from mft_merge.sources.quantization import FILE_NAME as QUANTIZATION_NAME
from mft_merge.sources.quantization import Quantization

# Architectures whose linear layers store (in, out); where a weight is square only this can tell.
CONV1D_MODEL_TYPES = ("gpt2", "openai-gpt", "decision_transformer", "imagegpt")


@dataclass(frozen=True, slots=True)
class Product:
    """scale * B @ A of one expert of an update, cut to the rows and columns that one stored matrix has.

    `is_transposed` says that the live parameter has the update as (in, out), `is_crossed` that the stored matrix has
    the live one's rows as columns. `weight` is for the rule of a combination.
    """

    update: LowRank
    expert: int
    first_row: int
    first_column: int
    is_transposed: bool
    is_crossed: bool
    weight: float = 1.0


@dataclass(frozen=True, slots=True)
class OutputTensor:
    """One tensor of the merged model.

    `source` is the base's tensor or the one that the adapter carries in its place. `products` are what is added to
    its matrices, by their index; `shifts` with their scale to a vector; `rows` replace rows. `quantization` is what
    the weights had gone through in training, as (out, in) where `is_quantized_transposed` says that they are stored
    (in, out); they are given back from it where `is_dequantized`, and else only measured against it. `combination`
    makes one update of the products. Without any of them and with the source's own type the payload is copied as it
    is.
    """

    name: str
    source: StoredTensor
    dtype: str
    products: dict[int, tuple[Product, ...]]
    shifts: tuple[tuple[StoredTensor, float], ...]
    rows: tuple[RowValues, ...]
    quantization: Quantization | None = None
    is_dequantized: bool = False
    combination: Combination | None = None
    is_quantized_transposed: bool = False

    @property
    def is_copy(self) -> bool:
        """Whether the payload is the source's, byte for byte."""
        is_changed = self.products or self.shifts or self.rows or self.is_dequantized
        return not is_changed and self.dtype == self.source.dtype

    @property
    def num_bytes(self) -> int:
        """The size of the payload."""
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


def resharded(plan: MergePlan, max_shard_bytes: int) -> MergePlan:
    """The plan with the same tensors in the same order, in new shards of at most so many bytes, or of one tensor."""
    groups: list[list[OutputTensor]] = [[]]
    for tensor in plan.tensors():
        if groups[-1] and sum(other.num_bytes for other in groups[-1]) + tensor.num_bytes > max_shard_bytes:
            groups.append([])
        groups[-1].append(tensor)
    if len(groups) == 1:
        return MergePlan({SINGLE_NAME: groups[0]}, plan.config_changes)
    names = [f"model-{index:05d}-of-{len(groups):05d}.safetensors" for index in range(1, len(groups) + 1)]
    return MergePlan(dict(zip(names, groups, strict=True)), plan.config_changes)


@dataclass(frozen=True, slots=True)
class Target:
    """`dtype` of the output, a safetensors code or "keep" for each base tensor's own; over which weights to merge.

    With `quantization` the weights are those given back from it, or the full ones where not `is_dequantized`.
    """

    dtype: str = "keep"
    quantization: Quantization | None = None
    is_dequantized: bool = False
    combination: Combination | None = None


def make_plan(changes: dict[str, Change], base: BaseModel, adapter_config: dict[str, Any], target: Target) -> MergePlan:
    """The plan of the merge."""
    embedding, head = _embedding_and_head(base)
    is_tied = embedding is not None and base.config.get("tie_word_embeddings", head not in base.tensors)
    is_untied_now = (
        is_tied
        and bool(changes.keys() & {embedding, head})
        and not _same_on_both_sides(changes.get(embedding or ""), changes.get(head or ""))
    )
    for name in sorted(changes):
        if name not in base.tensors and not (is_tied and name == head):
            raise _no_place(name, changes[name])
    planner = _Planner(changes, base, adapter_config, target, embedding, head)
    shards = {shard.path.name: [planner.output(name) for name in shard.tensors] for shard in base.shards}
    config_changes: dict[str, Any] = {}
    if is_untied_now:
        if "tie_word_embeddings" not in base.config and "text_config" in base.config:
            raise MergeError("untying the embeddings of a nested config is not supported", where=str(base.base_dir))
        config_changes["tie_word_embeddings"] = False
        if head is not None and head not in base.tensors:
            shards[list(shards)[-1]].append(planner.output(head))
    vocab_size = _vocab_size(shards, base, embedding, head)
    if embedding is not None and vocab_size is not None and vocab_size != base.tensors[embedding].shape[0]:
        config_changes["vocab_size"] = vocab_size
    return MergePlan(shards, config_changes)


def _no_place(name: str, change: Change) -> MergeError:
    if change == Change(is_quantized=True):
        return MergeError(f'"{name}" was quantised in training and is not in the base', where=QUANTIZATION_NAME)
    if change.shifts:
        return MergeError(
            f'adapter tensor "{change.some_tensor.name}" is added to a bias, and the base has none there',
            where=str(change.some_tensor.path),
            fix="such an adapter cannot be merged",
        )
    return unused(change.some_tensor)


def _embedding_and_head(base: BaseModel) -> tuple[str | None, str | None]:
    """The names of the token embedding's weight and of the output head that may be tied to it."""
    found = [name for name in base.tensors if name.endswith(".weight") and name.split(".")[-2] in TIED_HEADS]
    if len(found) != 1:
        return None, None
    return found[0], TIED_HEADS[found[0].split(".")[-2]] + ".weight"


@dataclass(frozen=True, slots=True)
class _Planner:
    changes: dict[str, Change]
    base: BaseModel
    adapter_config: dict[str, Any]
    target: Target
    embedding: str | None
    head: str | None

    def output(self, name: str) -> OutputTensor:
        """The output tensor `name`; a tied head that the base does not store starts from the embedding."""
        change = self.changes.get(name, Change())
        base_tensor = self.base.tensors.get(name) or self.base.tensors[self.embedding or ""]
        source = change.replacement or change.base_copy
        if source is None and name not in self.base.tensors:
            source = self.changes.get(self.embedding or "", Change()).base_copy
        source = source or base_tensor
        may_resize = name in (self.embedding, self.head) and source.shape[1:] == base_tensor.shape[1:]
        if source.shape != base_tensor.shape and not may_resize:
            raise _shape_error(source, source.shape, base_tensor.shape)
        is_float = base_tensor.dtype in FLOAT_TYPES
        if not is_float and name in self.changes:
            raise MergeError(
                f'"{name}" is of type {base_tensor.dtype}, which cannot be merged', where=str(self.base.base_dir)
            )
        for values, shape in [
            *((values, source.shape) for values, _ in change.shifts),
            *((rows.values, (len(rows.token_ids), *source.shape[1:])) for rows in change.rows),
        ]:
            if values.shape != shape:
                raise _shape_error(values, values.shape, shape)
        for rows in change.rows:
            if max(rows.token_ids) >= source.shape[0] or min(rows.token_ids) < 0:
                raise MergeError(
                    f'"{name}" has {source.shape[0]} rows and no token {max(rows.token_ids)}',
                    where=str(rows.values.path),
                )
        products = {
            index: tuple(self._product(name, block, source.shape) for block in blocks)
            for index, blocks in change.blocks.items()
        }
        out_dtype = base_tensor.dtype if self.target.dtype == "keep" or not is_float else self.target.dtype
        quantization = self.target.quantization if change.is_quantized else None
        if quantization and len(source.shape) != 2:
            if self.target.is_dequantized:
                raise MergeError(
                    f'"{name}" was quantised in training, and it is stored otherwise than it was quantised',
                    where=str(self.base.base_dir),
                    fix="fold into the full weights with --base-weights full",
                )
            quantization = None
        is_dequantized = quantization is not None and self.target.is_dequantized
        is_transposed = quantization is not None and self._is_conv1d and name != self.head
        extra = (quantization, is_dequantized, self.target.combination if products else None, is_transposed)
        return OutputTensor(name, source, out_dtype, products, tuple(change.shifts), tuple(change.rows), *extra)

    @property
    def _is_conv1d(self) -> bool:
        """Whether all linear layers but the head store (in, out)."""
        return self.base.config.get("model_type") in CONV1D_MODEL_TYPES

    def _product(self, name: str, block: Block, stored_shape: tuple[int, ...]) -> Product:
        """The product of a block, its shapes checked."""
        update = block.update
        shape = block.shape or stored_shape
        is_transposed = self._is_transposed(update, shape)
        if shape != (update.shape[::-1] if is_transposed else update.shape):
            raise MergeError(
                f'the update of "{name}" has shape {list(update.shape)}, the weight has {list(shape)}',
                where=str(update.a.path),
                fix="check that this is the base that the adapter was trained on",
            )
        if update.magnitude and update.magnitude.shape != update.shape[:1]:
            raise _shape_error(update.magnitude, update.magnitude.shape, update.shape[:1])
        first = (block.first_row, block.first_column)
        return Product(update, block.expert, *first, is_transposed, block.is_transposed, block.weight)

    def _is_transposed(self, update: LowRank, shape: tuple[int, ...]) -> bool:
        """Whether the live weight of this shape is (in, out)."""
        if update.is_transposed is not None:
            return update.is_transposed
        if update.shape[0] != update.shape[1]:
            return update.shape != shape and update.shape[::-1] == shape
        # PEFT keeps one fan_in_fan_out for all layers and the last layer set it: alone it cannot be trusted.
        return self._is_conv1d or bool(self.adapter_config.get("fan_in_fan_out"))


def _shape_error(tensor: StoredTensor, found: tuple[int, ...], wanted: tuple[int, ...]) -> MergeError:
    return MergeError(
        f'adapter tensor "{tensor.name}" has shape {list(found)}, the base has {list(wanted)}', where=str(tensor.path)
    )


def _same_on_both_sides(embedding: Change | None, head: Change | None) -> bool:
    """Whether the adapter changes a tied embedding and its head alike, so that they stay tied."""
    if embedding is not None and embedding.rows and not embedding.blocks and not embedding.replacement:
        # PEFT ties the trained tokens of an embedding to its head; the head has own ones only where it was named.
        return head is None or (_same_rows(embedding.rows, head.rows) and not head.blocks and not head.replacement)
    if embedding is None or head is None:
        return False
    if embedding.replacement and head.replacement:
        pair = embedding.replacement, head.replacement
        return pair[0].shape == pair[1].shape and all(
            one == other for one, other in zip(*map(payload_chunks, pair), strict=True)
        )
    if embedding.blocks and head.blocks:
        ones, others = embedding.blocks[0], head.blocks[0]
        return len(ones) == len(others) and all(map(_is_same_update, ones, others))
    return False


def _same_rows(ones: list[RowValues], others: list[RowValues]) -> bool:
    return len(ones) == len(others) and all(
        one.token_ids == other.token_ids and list(payload_chunks(one.values)) == list(payload_chunks(other.values))
        for one, other in zip(ones, others, strict=True)
    )


def _is_same_update(embedding: Block, head: Block) -> bool:
    one, other = embedding.update, head.update
    if one.magnitude or other.magnitude or one.scale != other.scale:
        return False
    return _is_transpose(one.a, other.b) and _is_transpose(one.b, other.a)


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
            f'"{embedding}" has {rows[embedding or ""]} rows and "{head}" has {rows[head or ""]}',
            where=str(base.base_dir),
            fix="save both with the adapter",
        )
    return rows.get(embedding or "")
