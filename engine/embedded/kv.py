"""Keys and values of the running rows: dense slabs, one per size class.

A slab is one tensor `[layers, 2, rows, kv_heads, capacity, head_dim]`; its used rows are always the first ones, so that
a decode step reads it as a view, without gathering. A row that outgrows its slab moves to the next class. Rows of
about equal length share a slab, which bounds the padding of attention.
"""

from __future__ import annotations

import torch
from torch import Tensor

from engine.embedded.shape import DecoderShape

_FIRST_ROWS = 8


def capacity_for(tokens: int) -> int:
    """The smallest size class that holds this many tokens: steps of 64 up to 256, then two classes an octave."""
    if tokens <= 256:
        return max(1, -(-tokens // 64)) * 64
    power = 1 << (tokens - 1).bit_length() - 1
    return power * 3 // 2 if tokens <= power * 3 // 2 else power * 2


class Row:
    """One running sequence's place; `length` counts the tokens whose keys and values are written."""

    __slots__ = ("index", "length", "slab")

    def __init__(self, slab: Slab, index: int) -> None:
        self.slab = slab
        self.index = index
        self.length = 0

    def __repr__(self) -> str:
        return f"<Row {self.index} of {self.slab!r}, {self.length} tokens>"


class Slab:
    """The rows of one size class, compact from 0 once `compact` has run."""

    def __init__(self, shape: DecoderShape, capacity: int) -> None:
        self.capacity = capacity
        self.rows: list[Row | None] = []
        # Zeros, not garbage: attention multiplies what lies behind a row's end by 0, and 0 times NaN is NaN.
        self.kv = torch.zeros(shape.layers, 2, _FIRST_ROWS, shape.kv_heads, capacity, shape.head_dim)

    def __repr__(self) -> str:
        return f"<Slab of {self.capacity} tokens: {len(self.rows)} rows>"

    def open(self) -> Row:
        """A new row: in a hole if there is one, else behind the last."""
        if None in self.rows:
            row = Row(self, self.rows.index(None))
            self.rows[row.index] = row
            return row
        if len(self.rows) == self.kv.shape[2]:
            self._resize(2 * len(self.rows))
        row = Row(self, len(self.rows))
        self.rows.append(row)
        return row

    def close(self, row: Row) -> None:
        """Leave a hole; `compact` fills it unless a new row does so first."""
        self.rows[row.index] = None

    def compact(self) -> None:
        """Fill every hole with the last row, and give memory back when most of it is unused."""
        while None in self.rows:
            last = self.rows.pop()
            if last is None:
                continue
            hole = self.rows.index(None)
            self.kv[:, :, hole, :, : last.length] = self.kv[:, :, last.index, :, : last.length]
            last.index = hole
            self.rows[hole] = last
        if self.kv.shape[2] > _FIRST_ROWS and len(self.rows) < self.kv.shape[2] // 4:
            self._resize(max(_FIRST_ROWS, 2 * len(self.rows)))

    def _resize(self, rows: int) -> None:
        layers, two, _, heads, capacity, width = self.kv.shape
        grown = self.kv.new_zeros(layers, two, rows, heads, capacity, width)
        used = len(self.rows)
        grown[:, :, :used] = self.kv[:, :, :used]
        self.kv = grown


class KVPool:
    """All slabs. The scheduler reserves tokens before it opens a row; the pool itself never refuses."""

    def __init__(self, shape: DecoderShape) -> None:
        self._shape = shape
        self._slabs: dict[int, Slab] = {}

    def active(self) -> list[Slab]:
        """The slabs that hold rows, compacted; called once before each step."""
        for slab in self._slabs.values():
            slab.compact()
        return [slab for slab in self._slabs.values() if slab.rows]

    def open(self, tokens: int) -> Row:
        """A row with room for this many tokens."""
        return self._slab(capacity_for(tokens)).open()

    def grow(self, row: Row, tokens: int) -> None:
        """Make room for `tokens` in a row, moving it to a larger slab if it must."""
        if tokens <= row.slab.capacity:
            return
        old, index = row.slab, row.index
        moved = self._slab(capacity_for(tokens)).open()
        moved.slab.kv[:, :, moved.index, :, : row.length] = old.kv[:, :, index, :, : row.length]
        old.close(row)
        row.slab, row.index = moved.slab, moved.index
        row.slab.rows[row.index] = row

    def close(self, row: Row) -> None:
        """Free a row's place."""
        row.slab.close(row)

    def scrub(self) -> None:
        """Zero what lies behind every row's end: a broken adapter may have left values there that are not numbers."""
        for slab in self._slabs.values():
            slab.compact()
            slab.kv[:, :, len(slab.rows) :] = 0
            for row in slab.rows:
                if row is not None:
                    slab.kv[:, :, row.index, :, row.length :] = 0

    def write(self, row: Row, kv: Tensor) -> None:
        """Append known keys and values, `[layers, 2, kv_heads, tokens, head_dim]`."""
        stop = row.length + kv.shape[3]
        row.slab.kv[:, :, row.index, :, row.length : stop] = kv
        row.length = stop

    def read(self, row: Row, start: int, stop: int) -> Tensor:
        """A copy of a row's keys and values, `[layers, 2, kv_heads, stop - start, head_dim]`."""
        return row.slab.kv[:, :, row.index, :, start:stop].clone()

    def _slab(self, capacity: int) -> Slab:
        slab = self._slabs.get(capacity)
        if slab is None:
            slab = self._slabs[capacity] = Slab(self._shape, capacity)
        return slab
