"""From episodes to tensors: which tokens are trained, and how episodes share a batch.

A micro-batch holds siblings of one group: their common opening once (``prefix``), and what follows it as right-padded
rows sorted by length. Causal attention needs no padding mask for rows padded on the right, and sharing the opening
saves its forward and backward pass for all but one sibling. Token t of an episode is predicted by the hidden state at
t - 1; only tokens inside a policy span are targets. Padding is known from lengths, never from an id.
"""

# ruff: noqa: N815, N802 - tensor suffixes are the shape legend (learner/__init__.py)

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from engine.errors import RunError
from engine.types import Episode, Tokens

CALL_TOKENS = 64
"""Fixed cost of one micro-batch, in tokens: keeps the partition from making many small ones."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class TrainedEpisode:
    """One scored episode of a step."""

    id: str
    group_id: str
    ids_T: NDArray[np.int64]
    """[T] every id up to its last policy token, exactly as sampled and observed."""
    target_P: NDArray[np.int64]
    """[P] positions of the policy tokens in `ids_T`, ascending, each >= 1."""
    behaviour_P: NDArray[np.float32]
    """[P] log mu."""
    version_P: NDArray[np.int32]
    """[P] adapter version that sampled each."""
    advantage: float
    temperature: float

    @property
    def opening(self) -> int:
        """Ids before the first policy token."""
        return int(self.target_P[0])


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class MicroBatch:
    """Rows of one forward and backward pass, and the P policy tokens in them (flattened, row after row)."""

    prefix_T: Tensor
    """[T] int64: the shared opening; at least one id."""
    ids_BT: Tensor
    """[B, T] int64: what follows the prefix in each row, right-padded with 0."""
    row_P: Tensor
    """[P] int64: row of each policy token."""
    position_P: Tensor
    """[P] int64: its column in `ids_BT`."""
    behaviour_P: Tensor
    advantage_P: Tensor
    temperature_P: Tensor
    version_P: Tensor
    episodes: tuple[TrainedEpisode, ...]

    @property
    def target_P(self) -> Tensor:
        """[P] the ids to predict."""
        return self.ids_BT[self.row_P, self.position_P]

    @property
    def tokens(self) -> int:
        """Tokens that go through the decoder, padding included."""
        return self.prefix_T.numel() + self.ids_BT.numel()


def trained_episode(episode: Episode, group_id: str, *, advantage: float, temperature: float) -> TrainedEpisode | None:
    """The tensors' source of one scored episode; None if the policy sampled nothing in it.

    Raises RunError for a ledger that contradicts itself (the stream and the learner disagree: training must stop)."""
    tokens = episode.tokens
    if tokens is None:
        raise RunError(f"{episode.id}: a policy episode without token ids cannot be trained on")
    _check_ledger(episode.id, tokens)
    if not tokens.spans:
        return None
    target_P = np.concatenate([np.arange(span.start, span.start + span.length) for span in tokens.spans])
    versions = [np.full(span.length, span.version, dtype=np.int32) for span in tokens.spans]
    return TrainedEpisode(
        id=episode.id,
        group_id=group_id,
        ids_T=np.asarray(tokens.ids[: target_P[-1] + 1], dtype=np.int64),
        target_P=target_P.astype(np.int64),
        behaviour_P=np.asarray(tokens.logprobs, dtype=np.float32),
        version_P=np.concatenate(versions),
        advantage=advantage,
        temperature=temperature,
    )


def _check_ledger(episode_id: str, tokens: Tokens) -> None:
    end = 1
    for span in tokens.spans:
        if span.start < end or span.length < 1:
            raise RunError(f"{episode_id}: policy spans overlap or start before token {end}")
        end = span.start + span.length
    if tokens.spans and end > len(tokens.ids):
        raise RunError(f"{episode_id}: a policy span ends at {end}, after the last of {len(tokens.ids)} ids")
    sampled = sum(span.length for span in tokens.spans)
    if sampled != len(tokens.logprobs):
        raise RunError(f"{episode_id}: {sampled} policy tokens but {len(tokens.logprobs)} log-probabilities")


def micro_batches(episodes: Sequence[TrainedEpisode], budget_tokens: int) -> list[MicroBatch]:
    """Partition a step: siblings together, sorted by length (ties by id), at most `budget_tokens` per pass.

    An episode longer than the budget gets a pass of its own. The order is a function of the episodes alone."""
    groups: dict[str, list[TrainedEpisode]] = {}
    for episode in episodes:
        groups.setdefault(episode.group_id, []).append(episode)
    batches = []
    for group_id in sorted(groups):
        rows = sorted(groups[group_id], key=lambda episode: (len(episode.ids_T), episode.id))
        prefix = _shared_opening(rows)
        cuts = _cuts([len(row.ids_T) - prefix for row in rows], prefix, budget_tokens)
        batches += [_batch(rows[start:end], prefix) for start, end in cuts]
    return batches


def _shared_opening(rows: Sequence[TrainedEpisode]) -> int:
    """Length of the longest common start that holds no target of any row."""
    limit = min(row.opening for row in rows)
    first = rows[0].ids_T[:limit]
    for row in rows[1:]:
        differs = np.flatnonzero(first != row.ids_T[: len(first)])
        first = first[: differs[0]] if len(differs) else first
    if len(first) == 0:
        raise RunError(f"{rows[0].group_id}: its episodes do not share an opening, yet they are of one task")
    return len(first)


def _cuts(lengths: Sequence[int], prefix: int, budget: int) -> list[tuple[int, int]]:
    """Cut ascending lengths into runs [start, end) of least total cost (padding, prefixes and calls); O(n^2)."""
    best = [0.0] * (len(lengths) + 1)
    cut = [0] * (len(lengths) + 1)
    for end in range(1, len(lengths) + 1):
        best[end] = float("inf")
        for start in range(end - 1, -1, -1):
            size = prefix + (end - start) * lengths[end - 1]
            if size > budget and end - start > 1:
                break
            if best[start] + size + CALL_TOKENS < best[end]:
                best[end], cut[end] = best[start] + size + CALL_TOKENS, start
    runs, end = [], len(lengths)
    while end:
        runs.append((cut[end], end))
        end = cut[end]
    return runs[::-1]


def _batch(rows: Sequence[TrainedEpisode], prefix: int) -> MicroBatch:
    width = max(len(row.ids_T) for row in rows) - prefix
    ids_BT = np.zeros((len(rows), width), dtype=np.int64)
    for index, row in enumerate(rows):
        ids_BT[index, : len(row.ids_T) - prefix] = row.ids_T[prefix:]
    counts = [len(row.target_P) for row in rows]
    return MicroBatch(
        prefix_T=torch.from_numpy(rows[0].ids_T[:prefix].copy()),
        ids_BT=torch.from_numpy(ids_BT),
        row_P=torch.from_numpy(np.repeat(np.arange(len(rows)), counts)),
        position_P=torch.from_numpy(np.concatenate([row.target_P for row in rows]) - prefix),
        behaviour_P=torch.from_numpy(np.concatenate([row.behaviour_P for row in rows])),
        advantage_P=torch.from_numpy(np.repeat([row.advantage for row in rows], counts).astype(np.float32)),
        temperature_P=torch.from_numpy(np.repeat([row.temperature for row in rows], counts).astype(np.float32)),
        version_P=torch.from_numpy(np.concatenate([row.version_P for row in rows])),
        episodes=tuple(rows),
    )
