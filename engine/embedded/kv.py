"""Keys and values: the running rows in dense slabs, one per size class, and the prefix cache beside them.

A slab has one tensor a layer, `[2, rows, kv_heads, capacity, head_dim]`; its used rows are always the first ones, so
that a decode step reads it as a view, without gathering. A row that outgrows its slab moves to the next class. Rows of
about equal length share a slab, which bounds the padding of attention.

Slabs and cache together allocate at most the pool's budget, and for a moment the row that is being copied.
"""

from __future__ import annotations

import sys

import torch
from torch import Tensor

from engine.embedded.pages import LARGE_BYTES, zeros
from engine.embedded.prefix import PrefixTree
from engine.modeldir.shape import DecoderShape

_FEW_ROWS = 8
"""Rows of a new slab (fewer if they are large), and how many are quickly copied to give up spare ones."""


def token_bytes(shape: DecoderShape) -> int:
    """Returns the bytes of float32 keys and values that one token holds over all layers."""
    return shape.kv_values * 4


def capacity_for(tokens: int) -> int:
    """The smallest size class that holds this many tokens: steps of 64 up to 256, then two classes an octave."""
    if tokens <= 256:
        return max(1, -(-tokens // 64)) * 64
    power = 1 << (tokens - 1).bit_length() - 1
    return power * 3 // 2 if tokens <= power * 3 // 2 else power * 2


class KvRow:
    """One running sequence's place; `length` counts the tokens whose keys and values are written."""

    __slots__ = ("index", "length", "slab")

    def __init__(self, slab: Slab, index: int) -> None:
        self.slab = slab
        self.index = index
        self.length = 0

    def __repr__(self) -> str:
        return f"<Row {self.index} of {self.slab!r}, {self.length} tokens>"


class Slab:
    """The rows of one size class, compact from 0 once `compact` has run; `places` counts those it has memory for."""

    def __init__(self, shape: DecoderShape, capacity: int) -> None:
        self.capacity = capacity
        self.rows: list[KvRow | None] = []
        self.places = 0
        row_bytes = capacity * token_bytes(shape)
        self.large = row_bytes >= LARGE_BYTES
        self.first = max(1, min(_FEW_ROWS, LARGE_BYTES // row_bytes))
        self.kv = [torch.empty(2, 0, shape.kv_heads, capacity, shape.head_dim) for _ in range(shape.layers)]

    def __repr__(self) -> str:
        return f"<Slab of {self.capacity} tokens: {len(self.rows)} of {self.places} rows>"

    @property
    def full(self) -> bool:
        """Whether a new row needs more memory."""
        return len(self.rows) == self.places and None not in self.rows

    def open(self) -> KvRow:
        """A new row in a slab that is not full: in a hole if there is one, else behind the last."""
        if None in self.rows:
            row = KvRow(self, self.rows.index(None))
            self.rows[row.index] = row
            return row
        row = KvRow(self, len(self.rows))
        self.rows.append(row)
        return row

    def close(self, row: KvRow) -> None:
        """Leave a hole; `compact` fills it unless a new row does so first."""
        self.rows[row.index] = None

    def compact(self) -> None:
        """Fill every hole with the last row, and give memory back when most of it is unused."""
        self._fill_holes()
        enough = max(self.first, len(self.rows) * 3 // 2)
        if len(self.rows) < self.places // 2 and enough < self.places:
            self.resize(enough)

    def fit(self) -> None:
        """Give back all memory that no row uses."""
        self._fill_holes()
        if len(self.rows) < self.places:
            self.resize(len(self.rows))

    def resize(self, places: int) -> None:
        """Have memory for this many rows; a layer at a time, so that the slab never exists twice."""
        used = len(self.rows)
        for index, old in enumerate(self.kv):
            # Zeros, not garbage: attention multiplies what lies behind a row's end by 0, and 0 times NaN is NaN.
            new = zeros((2, places, *old.shape[2:]), large=self.large)
            new[:, :used] = old[:, :used]
            self.kv[index] = new
        self.places = places

    def _fill_holes(self) -> None:
        while None in self.rows:
            last = self.rows.pop()
            if last is None:
                continue
            hole = self.rows.index(None)
            for kv in self.kv:
                kv[:, hole, :, : last.length] = kv[:, last.index, :, : last.length]
            last.index = hole
            self.rows[hole] = last


class KVPool:
    """All slabs and the prefix cache, within a budget of tokens.

    The scheduler opens a row only while the worst cases (`row_tokens`) of all rows fit the budget together; spare rows
    and cached prefixes give way to them, so that the pool itself never refuses."""

    def __init__(self, shape: DecoderShape, budget: int) -> None:
        self.cache = PrefixTree()
        self._shape = shape
        self._budget = budget
        self._slabs: dict[int, Slab] = {}

    def __repr__(self) -> str:
        return f"<KVPool: {self.allocated} + {self.cache.tokens} cached of {self._budget} tokens>"

    @property
    def allocated(self) -> int:
        """Tokens that the slabs have memory for."""
        return sum(slab.places * slab.capacity for slab in self._slabs.values())

    @property
    def used(self) -> int:
        """Tokens that slabs and cache have memory for."""
        return self.allocated + self.cache.tokens

    def row_tokens(self, tokens: int) -> int:
        """What a row with room for this many tokens allocates."""
        return min(capacity_for(tokens), self._budget)

    def active(self) -> list[Slab]:
        """The slabs that hold rows, compacted; called once before each step."""
        for slab in self._slabs.values():
            slab.compact()
        self._slabs = {capacity: slab for capacity, slab in self._slabs.items() if slab.rows}
        self._make_room(0)
        return list(self._slabs.values())

    def open(self, tokens: int) -> KvRow:
        """A row with room for this many tokens."""
        capacity = self.row_tokens(tokens)
        slab = self._slabs.get(capacity)
        if slab is None:
            slab = self._slabs[capacity] = Slab(self._shape, capacity)
        if slab.full:
            self._make_room(capacity)
            spare = (self._budget - self.allocated) // capacity
            more = max(1, min(spare, max(slab.first, len(slab.rows) // 2)))
            self._evict(more * capacity)
            slab.resize(len(slab.rows) + more)
        return slab.open()

    def grow(self, row: KvRow, tokens: int) -> None:
        """Make room for `tokens` in a row, moving it to a larger slab if it must."""
        if tokens <= row.slab.capacity:
            return
        moved = self.open(tokens)
        for old, new in zip(row.slab.kv, moved.slab.kv, strict=True):
            new[:, moved.index, :, : row.length] = old[:, row.index, :, : row.length]
        row.slab.close(row)
        row.slab, row.index = moved.slab, moved.index
        row.slab.rows[row.index] = row

    def close(self, row: KvRow) -> None:
        """Free a row's place."""
        row.slab.close(row)

    def remember(self, load_id: int, tokens: list[int], row: KvRow, *, leaving: bool) -> None:
        """Copy a row's first keys and values, those of `tokens`, to the cache; not if rows need all of the budget.

        A row that is `leaving` is closed right after, so that its place counts as free."""
        found, _ = self.cache.match(load_id, tokens, len(tokens))
        new = len(tokens) - found - (row.slab.capacity if leaving else 0)
        if self.allocated + new <= self._budget:
            self._evict(new)
            self.cache.insert(load_id, tokens, lambda start, stop: self.read(row, start, stop))

    def scrub(self) -> None:
        """Zero what lies behind every row's end: a broken adapter may have left values there that are not numbers."""
        for slab in self._slabs.values():
            slab.compact()
            for kv in slab.kv:
                kv[:, len(slab.rows) :] = 0
                for row in slab.rows:
                    if row is not None:
                        kv[:, row.index, :, row.length :] = 0

    def write(self, row: KvRow, kv: Tensor) -> None:
        """Append known keys and values, `[layers, 2, kv_heads, tokens, head_dim]`."""
        stop = row.length + kv.shape[3]
        for own, new in zip(row.slab.kv, kv, strict=True):
            own[:, row.index, :, row.length : stop] = new
        row.length = stop

    def read(self, row: KvRow, start: int, stop: int) -> Tensor:
        """A copy of a row's keys and values, `[layers, 2, kv_heads, stop - start, head_dim]`."""
        shape = (len(row.slab.kv), 2, self._shape.kv_heads, stop - start, self._shape.head_dim)
        copy = zeros(shape, large=(stop - start) * token_bytes(self._shape) >= LARGE_BYTES)
        return torch.stack([kv[:, row.index, :, start:stop] for kv in row.slab.kv], out=copy)

    def _make_room(self, tokens: int) -> None:
        """Make `tokens` fit: a few spare rows go first, then what is cached, and every spare row for a row only."""
        if self.used + tokens > self._budget:
            self._fit(_FEW_ROWS)
        if self.allocated + tokens > self._budget:
            self._fit(sys.maxsize)
        self._evict(tokens)

    def _fit(self, most_rows: int) -> None:
        for slab in self._slabs.values():
            if len(slab.rows) <= most_rows:
                slab.fit()

    def _evict(self, tokens: int) -> None:
        over = self.used + tokens - self._budget
        if over > 0:
            # A tenth more, so that the scan for old leaves is paid once in many evictions.
            self.cache.evict(min(self.cache.tokens, over + self._budget // 10))
