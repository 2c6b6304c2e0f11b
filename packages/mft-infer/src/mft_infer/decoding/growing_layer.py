"""Keys and values in buffers with room to grow: a step writes its column, and rows come and go, without a copy.

The layers of transformers make a new tensor for each column, which soon takes longer than the rest of a step.
"""

from typing import Any

import torch  # noqa: TID253 - a cache layer is a class of transformers'; only a loaded model imports this module
from torch import Tensor  # noqa: TID253 - as above
from transformers.cache_utils import DynamicLayer  # noqa: TID253 - as above

# A buffer that is too small is made larger by at least this share, and by so many columns.
GROWTH_SHARE = 4
GROWTH_COLUMNS = 64


class GrowingLayer(DynamicLayer):
    """A layer of full attention; `keys` and `values` are views of what is in use."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self._keys: _Buffer | None = None
        self._values: _Buffer | None = None

    def update(self, key_states: Tensor, value_states: Tensor, *_: Any, **__: Any) -> tuple[Tensor, Tensor]:
        """Take in the columns of new tokens; the keys and values of all."""
        if self._keys is None or self._values is None:
            # What transformers' own initialization sets, whose signature is not the same in 4.57 and 5.
            self.dtype, self.device, self.is_initialized = key_states.dtype, key_states.device, True
            self._keys, self._values = _Buffer(key_states), _Buffer(value_states)
        self._keys.append(key_states)
        self._values.append(value_states)
        self._show()
        return self._keys.view, self._values.view

    def crop(self, tokens_to_remove: int) -> None:
        """Forget the last -`tokens_to_remove` columns."""
        for buffer in self._buffers():
            buffer.end += tokens_to_remove
        self._show()

    @torch.inference_mode()
    def choose_rows(self, rows: list[int]) -> None:
        """Keep these rows, in this order."""
        for buffer in self._buffers():
            buffer.choose_rows(rows)
        self._show()

    @torch.inference_mode()
    def add_rows(self, other: "GrowingLayer") -> None:
        """Add the rows of another layer, which is no wider, with zeros before them."""
        for buffer, newer in zip(self._buffers(), other._buffers(), strict=True):
            buffer.add_rows(newer.view)
        self._show()

    def drop_columns(self, count: int) -> None:
        """Forget the first columns."""
        for buffer in self._buffers():
            buffer.start += count
        self._show()

    @torch.inference_mode()
    def widen(self, count: int) -> None:
        """Put columns of zeros before the others."""
        for buffer in self._buffers():
            buffer.widen(count)
        self._show()

    def _buffers(self) -> list["_Buffer"]:
        return [buffer for buffer in (self._keys, self._values) if buffer is not None]

    def _show(self) -> None:
        if views := [buffer.view for buffer in self._buffers()]:
            self.keys, self.values = views


class _Buffer:
    """Rows of heads of columns; of the tensor the first rows and the columns from `start` to `end` are in use."""

    def __init__(self, like: Tensor) -> None:
        rows, heads, _, size = like.shape
        self._tensor = like.new_empty(rows, heads, 0, size)
        self._num_rows = rows
        self.start = self.end = 0

    @property
    def view(self) -> Tensor:
        return self._tensor[: self._num_rows, :, self.start : self.end]

    def append(self, states: Tensor) -> None:
        count = states.shape[2]
        if self.end + count > self._tensor.shape[2]:
            self._move(self.view, self._room(), columns=self._grown(count))
        self._tensor[: self._num_rows, :, self.end : self.end + count] = states
        self.end += count

    def add_rows(self, states: Tensor) -> None:
        first, last = self._num_rows, self._num_rows + states.shape[0]
        if last > self._tensor.shape[0]:
            self._move(self.view, max(last, first + first // GROWTH_SHARE), columns=self._grown(0))
        border = self.end - states.shape[2]
        self._tensor[first:last, :, self.start : border] = 0
        self._tensor[first:last, :, border : self.end] = states
        self._num_rows = last

    def choose_rows(self, rows: list[int]) -> None:
        moves = [(target, source) for target, source in enumerate(rows) if target != source]
        if all(source >= len(rows) for _, source in moves):
            # What moves comes from behind the rows that stay, so nothing is overwritten that is still needed.
            view = self.view
            for target, source in moves:
                view[target] = view[source]
            self._num_rows = len(rows)
        else:
            chosen = self.view[torch.tensor(rows, device=self._tensor.device)]
            self._num_rows = len(rows)
            self._move(chosen, len(rows), columns=self._grown(0))

    def widen(self, count: int) -> None:
        if count > self.start:
            self._move(self.view, self._room(), columns=self._grown(count), start=count)
        self.start -= count
        self._tensor[: self._num_rows, :, self.start : self.start + count] = 0

    def _room(self) -> int:
        """Rows of a new buffer with more columns; for rows that have left it keeps little room."""
        return min(self._tensor.shape[0], self._num_rows + self._num_rows // GROWTH_SHARE)

    def _grown(self, count: int) -> int:
        """Columns of a new buffer that takes `count` more than are in use, and some of those to come."""
        needed = self.end - self.start + count
        return needed + max(GROWTH_COLUMNS, needed // GROWTH_SHARE)

    def _move(self, states: Tensor, num_rows: int, columns: int, start: int = 0) -> None:
        """Put `states`, all that is in use, into a new buffer at column `start`."""
        _, heads, width, size = states.shape
        self._tensor = states.new_empty(num_rows, heads, columns, size)
        self.start, self.end = start, start + width
        self._tensor[: states.shape[0], :, start : self.end] = states
