"""What an adapter does to the tensors that the base stores: every key of it is given its place there, or refused."""

from dataclasses import dataclass, field, replace
from math import prod

from mft_merge.errors import MergeError
from mft_merge.files.tensor_file import ITEM_BYTES, StoredTensor
from mft_merge.sources.adapter import Adapter, LowRank, RowValues, unused
from mft_merge.sources.base_model import BaseModel
from mft_merge.sources.live_model import LiveModel, Place, is_contiguous, read_live_model
from mft_merge.sources.quantization import FILE_NAME as QUANTIZATION_NAME
from mft_merge.sources.targeted_parameters import parameter_updates

TIED_HEADS = {"embed_tokens": "lm_head", "wte": "lm_head", "word_embeddings": "lm_head", "embed_in": "embed_out"}


@dataclass(frozen=True, slots=True)
class Block:
    """The part of an update that falls on one matrix of a stored tensor.

    The update is that of expert `expert`; of its matrix, as the live parameter has it, rows from `first_row` and
    columns from `first_column` on count, and `is_transposed` says that the stored matrix has them the other way round.
    `shape` is that of the live matrix, or None where the stored matrix is the live one. `weight` is the adapter's among
    several that are not just added.
    """

    update: LowRank
    expert: int = 0
    first_row: int = 0
    first_column: int = 0
    is_transposed: bool = False
    shape: tuple[int, int] | None = None
    weight: float = 1.0


@dataclass(slots=True)
class Change:
    """What happens to one stored tensor.

    `blocks` has, for every matrix of the stored tensor (one, or one for each expert), the updates that are added to it.
    `replacement` is put in its place, `base_copy` is what the update was trained over, `shift` with its scale is
    added to a bias, `rows` replace single rows; `is_quantized` says that the base had it quantised in training.
    """

    blocks: dict[int, list[Block]] = field(default_factory=dict)
    replacement: StoredTensor | None = None
    base_copy: StoredTensor | None = None
    shifts: list[tuple[StoredTensor, float]] = field(default_factory=list)
    rows: list[RowValues] = field(default_factory=list)
    is_quantized: bool = False

    @property
    def some_tensor(self) -> StoredTensor:
        """Any tensor of the adapter that takes part, for messages."""
        if self.blocks:
            return next(iter(self.blocks.values()))[0].update.a
        whole = self.replacement or self.base_copy
        return whole or (self.shifts[0][0] if self.shifts else self.rows[0].values)


def stored_changes(
    adapter: Adapter, base: BaseModel, quantized_modules: tuple[str, ...] = (), *, is_dequantized: bool = True
) -> dict[str, Change]:
    """The changes by the name of the stored tensor; the live model is built only where names are not those stored.

    Where the quantised weights are not given back, one that is not stored as it was quantised is left unmarked.
    """
    quantized = [f"{module}.weight" for module in quantized_modules]
    names = set(adapter.updates) | set(adapter.replacements) | set(adapter.base_copies) | set(adapter.rows)
    names |= set(adapter.shifts) | set(quantized)
    heads = {f"{head}.weight" for head in TIED_HEADS.values()}
    if not adapter.parameter_factors and names - heads <= base.tensors.keys():
        changes = _direct(adapter)
        for name in quantized:
            changes.setdefault(name, Change()).is_quantized = True
        return changes
    live = read_live_model(base)
    changes = _mapped(replace(adapter, updates=adapter.updates | parameter_updates(adapter, live)), live)
    for name in _stored_whole(quantized, live, adapter, must_be=is_dequantized):
        changes.setdefault(name, Change()).is_quantized = True
    return changes


def _stored_whole(parameters: list[str], live: LiveModel, adapter: Adapter, *, must_be: bool) -> list[str]:
    """The stored names of live parameters that are stored as they are: blocks go across their rows."""
    whole = {
        place.parameter: name for name, place in live.places.items() if _is_whole(place, live.shapes[place.parameter])
    }
    for parameter in parameters:
        if parameter not in live.shapes or (must_be and parameter not in whole):
            raise MergeError(
                f'"{parameter}" was quantised in training and is not stored as one tensor',
                where=str(adapter.adapter_dir / QUANTIZATION_NAME),
                fix="fold into the full weights with --base-weights full",
            )
    return [whole[parameter] for parameter in parameters if parameter in whole]


def _direct(adapter: Adapter) -> dict[str, Change]:
    changes: dict[str, Change] = {}
    for name, update in adapter.updates.items():
        changes.setdefault(name, Change()).blocks[0] = [Block(update)]
    for name, tensor in adapter.replacements.items():
        changes.setdefault(name, Change()).replacement = tensor
    for name, tensor in adapter.base_copies.items():
        changes.setdefault(name, Change()).base_copy = tensor
    for name, shift in adapter.shifts.items():
        changes.setdefault(name, Change()).shifts.append(shift)
    for name, rows in adapter.rows.items():
        changes.setdefault(name, Change()).rows.append(rows)
    return changes


def _mapped(adapter: Adapter, live: LiveModel) -> dict[str, Change]:
    """The changes where stored tensors are parts of live parameters."""
    by_parameter: dict[str, list[tuple[str, Place]]] = {}
    for name, place in live.places.items():
        by_parameter.setdefault(place.parameter, []).append((name, place))
    changes: dict[str, Change] = {}

    def places(parameter: str, tensor: StoredTensor) -> list[tuple[str, Place]]:
        if parameter not in live.shapes:
            raise unused(tensor)
        found = by_parameter.get(parameter, [])
        if sum(prod(place.shape) for _, place in found) != prod(live.shapes[parameter]):
            raise MergeError(
                f'"{parameter}" is stored in a layout that cannot be followed', where=str(adapter.adapter_dir)
            )
        return found

    for parameter, update in adapter.updates.items():
        for name, place in places(parameter, update.a):
            _spread(update, place, live.shapes[parameter], changes.setdefault(name, Change()))
    for attribute, tensors in (("replacement", adapter.replacements), ("base_copy", adapter.base_copies)):
        for parameter, tensor in tensors.items():
            for name, place in places(parameter, tensor):
                part = _cut(tensor, place, live.shapes[parameter])
                setattr(changes.setdefault(name, Change()), attribute, part)
    for parameter, (tensor, scale) in adapter.shifts.items():
        for name, place in places(parameter, tensor):
            changes.setdefault(name, Change()).shifts.append((_cut(tensor, place, live.shapes[parameter]), scale))
    for parameter, rows in adapter.rows.items():
        for name, place in places(parameter, rows.values):
            if not _is_whole(place, live.shapes[parameter]):
                raise _layout_error(name, rows.values)
            changes.setdefault(name, Change()).rows.append(rows)
    return changes


def _spread(update: LowRank, place: Place, shape: tuple[int, ...], change: Change) -> None:
    """Give the change the blocks of an update of a live parameter of this shape that fall on the stored tensor."""
    if _is_whole(place, shape) and update.num_experts == 1:
        change.blocks.setdefault(0, []).append(Block(update))
        return
    rows, columns = shape[-2:]
    matrix = rows * columns
    sizes, strides = place.shape[-2:], place.strides[-2:]
    leading = place.shape[:-2]
    fits = len(place.shape) >= 2 and len(shape) in (2, 3) and (not leading or place.strides[0] == matrix)
    is_straight = fits and all(size == 1 or a == b for size, a, b in zip(sizes, strides, (columns, 1), strict=True))
    is_crossed = fits and all(size == 1 or a == b for size, a, b in zip(sizes, strides, (1, columns), strict=True))
    if not is_straight and not is_crossed:
        raise _layout_error(place.parameter, update.a)
    for index in range(prod(leading)):
        offset = place.offset + index * matrix
        first_row, first_column = offset % matrix // columns, offset % columns
        block = Block(update, offset // matrix, first_row, first_column, not is_straight, (rows, columns))
        if update.magnitude is not None:
            raise _layout_error(place.parameter, update.magnitude)
        change.blocks.setdefault(index, []).append(block)


def _cut(tensor: StoredTensor, place: Place, shape: tuple[int, ...]) -> StoredTensor:
    """The stretch of a whole tensor of the adapter that falls on the stored tensor at `place`."""
    if _is_whole(place, shape):
        return tensor
    if tensor.shape != shape or not is_contiguous(place):
        raise _layout_error(place.parameter, tensor)
    item_bytes = ITEM_BYTES[tensor.dtype]
    return replace(
        tensor,
        shape=place.shape,
        offset=tensor.offset + place.offset * item_bytes,
        num_bytes=prod(place.shape) * item_bytes,
    )


def _is_whole(place: Place, shape: tuple[int, ...]) -> bool:
    return place.offset == 0 and place.shape == shape and is_contiguous(place)


def _layout_error(name: str, tensor: StoredTensor) -> MergeError:
    return MergeError(
        f'"{name}" is stored in a layout to which adapter tensor "{tensor.name}" cannot be brought',
        where=str(tensor.path),
    )
