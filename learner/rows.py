"""From episodes to tensors: which tokens are trained, and how episodes share a pass.

A pass (`MicroBatch`) is one flat sequence of tokens: for each group its common prompt once, then blocks of rows, each
row what follows the prompt in one sibling, sorted by length and padded on the right to the width of its block::

    prompt of g1 | block of 3 rows x 40 | block of 5 rows x 52 | prompt of g2 | block ...

Everything but attention works on the flat sequence; attention (learner.attention) lets a row see its prompt and,
causally, itself, so padding on the right needs no mask. Sharing the prompt saves it for all but one sibling. Token t
of an episode is predicted by the hidden state at t - 1; only tokens inside a policy span are targets. Padding is known
from lengths, never from an id.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from engine.errors import RunError
from engine.stream.frame import checked_ledger
from engine.types import Episode

BLOCK_TOKENS = 32
"""Fixed cost of one block, in padded tokens it may save: keeps the partition from making many small ones."""


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
    def prompt_tokens(self) -> int:
        """Ids before the first policy token."""
        return int(self.target_P[0])


@dataclass(frozen=True, slots=True, kw_only=True)
class GroupLayout:
    """Where the tokens of one group lie in a pass: the prompt, then its blocks one after the other."""

    prompt_tokens: int
    """Tokens of the shared prompt, at least one."""
    blocks: tuple[tuple[int, int], ...]
    """(rows, width) of each block."""

    @property
    def sizes(self) -> list[int]:
        """Tokens of prompt and blocks, padding included."""
        return [self.prompt_tokens, *(rows * width for rows, width in self.blocks)]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class MicroBatch:
    """One forward and backward pass, and the P policy tokens in it."""

    ids_T: Tensor
    """[T] int64; padding is 0."""
    position_T: Tensor
    """[T] int64: position of each token in its episode."""
    layout: tuple[GroupLayout, ...]
    before_P: Tensor
    """[P] int64: index in [T] of the hidden state that predicts each policy token."""
    target_P: Tensor
    """[P] int64: the policy tokens."""
    behaviour_P: Tensor
    advantage_P: Tensor
    temperature_P: Tensor
    version_P: Tensor
    episodes: tuple[TrainedEpisode, ...]
    """In the order of their policy tokens."""

    def to(self, device: torch.device) -> MicroBatch:
        """The same with its tensors on `device`."""
        return replace(
            self,
            ids_T=self.ids_T.to(device),
            position_T=self.position_T.to(device),
            before_P=self.before_P.to(device),
            target_P=self.target_P.to(device),
            behaviour_P=self.behaviour_P.to(device),
            advantage_P=self.advantage_P.to(device),
            temperature_P=self.temperature_P.to(device),
            version_P=self.version_P.to(device),
        )


def trained_episode(episode: Episode, group_id: str, *, advantage: float, temperature: float) -> TrainedEpisode | None:
    """The tensors' source of one scored episode; None if the policy sampled nothing in it.

    Raises RunError for a ledger that contradicts itself (the stream and the learner disagree: training must stop)."""
    tokens = episode.tokens
    if tokens is None:
        raise RunError(f"{episode.id}: a policy episode without token ids cannot be trained on")
    # What predicts a token is the hidden state before it, which the first has not.
    checked_ledger(episode.id, tokens, first=1)
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


def collate(episodes: Sequence[TrainedEpisode], budget_tokens: int) -> list[MicroBatch]:
    """Partition a step into passes of at most `budget_tokens`; a longer episode gets a pass of its own.

    Siblings sorted by length, ties and groups by id: the partition is a function of the episodes alone."""
    groups: dict[str, list[TrainedEpisode]] = {}
    for episode in episodes:
        groups.setdefault(episode.group_id, []).append(episode)
    passes = [_Pass()]
    for group_id in sorted(groups):
        rows = sorted(groups[group_id], key=lambda episode: (len(episode.ids_T), episode.id))
        prompt_tokens = _shared_prompt(rows)
        for start, end in _cuts([len(row.ids_T) - prompt_tokens for row in rows], budget_tokens - prompt_tokens):
            if passes[-1].size_with(rows[start:end], prompt_tokens) > budget_tokens and passes[-1].episodes:
                passes.append(_Pass())
            passes[-1].add(rows[start:end], prompt_tokens)
    return [each.batch() for each in passes if each.episodes]


def _shared_prompt(rows: Sequence[TrainedEpisode]) -> int:
    """Length of the longest common start that holds no target of any row."""
    limit = min(row.prompt_tokens for row in rows)
    first = rows[0].ids_T[:limit]
    for row in rows[1:]:
        differs = np.flatnonzero(first != row.ids_T[: len(first)])
        first = first[: differs[0]] if len(differs) else first
    if len(first) == 0:
        raise RunError(f"{rows[0].group_id}: its episodes do not share a prompt, yet they are of one task")
    return len(first)


def _cuts(lengths: Sequence[int], budget: int) -> list[tuple[int, int]]:
    """Cut ascending lengths into runs [start, end) of least padding plus a fixed cost per run; O(n^2)."""
    best = [0.0] * (len(lengths) + 1)
    cut = [0] * (len(lengths) + 1)
    for end in range(1, len(lengths) + 1):
        best[end] = float("inf")
        for start in range(end - 1, -1, -1):
            size = (end - start) * lengths[end - 1]
            if size > budget and end - start > 1:
                break
            if best[start] + size + BLOCK_TOKENS < best[end]:
                best[end], cut[end] = best[start] + size + BLOCK_TOKENS, start
    runs, end = [], len(lengths)
    while end:
        runs.append((cut[end], end))
        end = cut[end]
    return runs[::-1]


class _Pass:
    """A micro-batch being filled, block by block."""

    def __init__(self) -> None:
        self.episodes: list[TrainedEpisode] = []
        self._ids: list[NDArray[np.int64]] = []
        self._positions: list[NDArray[np.int64]] = []
        self._before: list[NDArray[np.int64]] = []
        self._layout: list[GroupLayout] = []
        self._size = 0
        self._prompt_end = 0

    def size_with(self, rows: Sequence[TrainedEpisode], prompt_tokens: int) -> int:
        """Tokens if the block were added."""
        shared = 0 if self._continues(rows) else prompt_tokens
        return self._size + shared + len(rows) * (len(rows[-1].ids_T) - prompt_tokens)

    def add(self, rows: Sequence[TrainedEpisode], prompt_tokens: int) -> None:
        """Append a block of siblings (ascending lengths), after their prompt if that is not there yet."""
        width = len(rows[-1].ids_T) - prompt_tokens
        if not self._continues(rows):
            self._append(rows[0].ids_T[:prompt_tokens], np.arange(prompt_tokens))
            self._prompt_end = self._size
            self._layout.append(GroupLayout(prompt_tokens=prompt_tokens, blocks=()))
        last = self._layout[-1]
        self._layout[-1] = GroupLayout(prompt_tokens=prompt_tokens, blocks=(*last.blocks, (len(rows), width)))
        for row in rows:
            # The prompt's last state predicts the token after it; every other token, the one before it in its row.
            after = row.target_P - prompt_tokens
            self._before.append(np.where(after > 0, self._size + after - 1, self._prompt_end - 1))
            ids = np.zeros(width, dtype=np.int64)
            ids[: len(row.ids_T) - prompt_tokens] = row.ids_T[prompt_tokens:]
            self._append(ids, np.arange(prompt_tokens, prompt_tokens + width))
            self.episodes.append(row)

    def _continues(self, rows: Sequence[TrainedEpisode]) -> bool:
        return bool(self.episodes) and self.episodes[-1].group_id == rows[0].group_id

    def _append(self, ids: NDArray[np.int64], positions: NDArray[np.int64]) -> None:
        self._ids.append(ids)
        self._positions.append(positions)
        self._size += len(ids)

    def batch(self) -> MicroBatch:
        """As tensors."""
        counts = [len(episode.target_P) for episode in self.episodes]

        def spread(values: Sequence[float]) -> Tensor:
            return torch.from_numpy(np.repeat(values, counts).astype(np.float32))

        return MicroBatch(
            ids_T=torch.from_numpy(np.concatenate(self._ids)),
            position_T=torch.from_numpy(np.concatenate(self._positions)),
            layout=tuple(self._layout),
            before_P=torch.from_numpy(np.concatenate(self._before)),
            target_P=torch.from_numpy(np.concatenate([row.ids_T[row.target_P] for row in self.episodes])),
            behaviour_P=torch.from_numpy(np.concatenate([row.behaviour_P for row in self.episodes])),
            advantage_P=spread([row.advantage for row in self.episodes]),
            temperature_P=spread([row.temperature for row in self.episodes]),
            version_P=torch.from_numpy(np.concatenate([row.version_P for row in self.episodes])),
            episodes=tuple(self.episodes),
        )
