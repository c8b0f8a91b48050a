"""The index tensors of one step: which token attends where, computed once and used by every layer.

Per slab two attentions: the *last* token of every row runs as one dense batch over the slab's view; the other tokens of
rows that are still reading their prompt run in small padded batches.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from engine.embedded.kv import KvRow, Slab
from engine.embedded.projection import AdapterSegment

IntArray = NDArray[np.int64]


class Work(NamedTuple):
    """The tokens one row runs in a step; the first one's position is the row's length."""

    row: KvRow
    load_id: int
    tokens: list[int]


class PlacedRow(NamedTuple):
    """A row's work and where its first token lies in the flat batch."""

    work: Work
    flat: int


@dataclass(frozen=True, slots=True, kw_only=True)
class PromptBatch:
    """The tokens before the last one, of rows with a similar number of them; P = padded tokens a row."""

    rows: list[int]
    """Indexes in the slab."""
    gather: Tensor
    """`[len(rows) * P]` flat tokens; padding repeats the last."""
    mask: Tensor
    """`[len(rows), 1, P, width]`, True where a token may look."""
    valid: Tensor
    """Positions in `gather` that are not padding."""
    scatter: Tensor
    """The flat token of each valid position."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SlabStep:
    """What one slab does in a step."""

    slab: Slab
    width: int
    """Tokens of the longest row, including this step's."""
    last: Tensor
    """`[R]` the flat token that is each row's last."""
    bias: Tensor | None
    """`[R * kv_heads, 1, width]`, -inf behind a row's end; None when all rows have the full width."""
    written: Tensor
    """The flat tokens that belong to this slab."""
    destination: Tensor
    """Where the heads of their keys and values go in the slab's `[2 * rows * kv_heads * capacity, head_dim]`."""
    prompts: list[PromptBatch]


@dataclass(frozen=True, slots=True, kw_only=True)
class StepPlan:
    """One forward pass over N flat tokens, sorted by adapter."""

    tokens: Tensor
    positions: Tensor
    segments: list[AdapterSegment]
    slabs: list[SlabStep]
    starts: list[int]
    """The flat index of each work's first token."""


def plan_step(works: list[Work], slabs: list[Slab]) -> StepPlan:
    """Lay out `works` (sorted by load id; exactly one for every row of every slab)."""
    tokens: list[int] = []
    positions: list[int] = []
    starts: list[int] = []
    segments: list[AdapterSegment] = []
    places: dict[Slab, list[PlacedRow | None]] = {slab: [None] * len(slab.rows) for slab in slabs}
    for work in works:
        flat, length = len(tokens), work.row.length
        starts.append(flat)
        places[work.row.slab][work.row.index] = PlacedRow(work, flat)
        tokens.extend(work.tokens)
        positions.extend(range(length, length + len(work.tokens)))
        if segments and segments[-1].load_id == work.load_id:
            segments[-1] = segments[-1]._replace(stop=len(tokens))
        else:
            segments.append(AdapterSegment(work.load_id, flat, len(tokens)))
    return StepPlan(
        tokens=torch.tensor(tokens),
        positions=torch.tensor(positions),
        segments=segments,
        slabs=[_slab_step(slab, [p for p in rows if p is not None]) for slab, rows in places.items()],
        starts=starts,
    )


def _slab_step(slab: Slab, places: list[PlacedRow]) -> SlabStep:
    # numpy: its small operations cost a fifth of torch's, and there are twenty of them a step.
    table = np.array([(p.flat, len(p.work.tokens), p.work.row.length, p.work.row.index) for p in places])
    flat, counts, lengths, rows = table.T
    ends = lengths + counts
    width, heads = int(ends.max()), slab.kv[0].shape[2]
    offsets = np.arange(counts.sum()) - np.repeat(counts.cumsum() - counts, counts)
    cells = np.repeat(rows * heads * slab.capacity + lengths, counts) + offsets
    half = slab.places * heads * slab.capacity
    head_cells = (np.array([[0], [half]]) + np.arange(heads) * slab.capacity).ravel()
    return SlabStep(
        slab=slab,
        width=width,
        last=torch.from_numpy(flat + counts - 1),
        bias=_bias(ends, width, heads) if ends.min() < width else None,
        written=torch.from_numpy(np.repeat(flat, counts) + offsets),
        destination=torch.from_numpy((cells[:, None] + head_cells).ravel()),
        prompts=_prompt_batches([p for p in places if len(p.work.tokens) > 1], width),
    )


def _bias(ends: IntArray, width: int, heads: int) -> Tensor:
    """-inf behind each row's end, `[rows * heads, 1, width]`."""
    behind = np.arange(width) >= ends.repeat(heads)[:, None]
    return torch.from_numpy(np.where(behind, np.float32(-np.inf), np.float32(0)))[:, None]


def _prompt_batches(places: list[PlacedRow], width: int) -> list[PromptBatch]:
    """Batch rows whose counts have the same number of bits, so that padding at most doubles the work."""
    alike: dict[int, list[PlacedRow]] = defaultdict(list)
    for p in places:
        alike[(len(p.work.tokens) - 1).bit_length()].append(p)
    return [_prompt_batch(batch, width) for batch in alike.values()]


def _prompt_batch(places: list[PlacedRow], width: int) -> PromptBatch:
    counts = torch.tensor([len(p.work.tokens) - 1 for p in places])[:, None]
    steps = torch.arange(int(counts.max()))
    gather = torch.tensor([p.flat for p in places])[:, None] + torch.minimum(steps, counts - 1)
    seen = torch.tensor([p.work.row.length for p in places])[:, None] + steps
    valid = (steps < counts).flatten().nonzero()[:, 0]
    return PromptBatch(
        rows=[p.work.row.index for p in places],
        gather=gather.flatten(),
        mask=(torch.arange(width) <= seen[:, :, None])[:, None],
        valid=valid,
        scatter=gather.flatten()[valid],
    )
