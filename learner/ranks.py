"""The ranks of one learner: processes that each compute a part of every step, and all that they tell each other.

Rank 0 is the learner; the others follow it (learner.follow). What crosses ranks are sums and broadcasts of numbers,
entered by all of them in the same order::

    rank 0 has begun ─▶ its step: the others load that checkpoint
    an order         ─▶ train the groups up to this cursor, or stop
    in a step        ─▶ [given up, loss] ─▶ gradients as one flat buffer ─▶ what was seen of the policy tokens

Tensors on the CPU go through gloo, those on GPUs through nccl. A rank that ends closes its connections, so the next
gloo call of the others fails: nobody waits for the dead, and a step that one rank did not finish is nobody's.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta
from math import ceil
from typing import Self

import torch
import torch.distributed as dist
from torch import Tensor

from engine.config.environment import environment
from engine.config.tree import Config
from engine.errors import ConfigError, SynthError
from engine.stream.segment import Cursor
from learner.rows import MicroBatch

_PATIENCE = timedelta(days=365)
"""Of a collective. The ranks wait for rank 0 as long as that waits for groups; one that ends is noticed at once."""


class RankLostError(SynthError):
    """Another rank ended, so this one must: the run's supervisor starts all of them again."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Order:
    """What rank 0 tells the others to do next."""

    cursor: Cursor
    """Train the groups of the stream up to here."""
    step: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Ranks:
    """A process among the ranks of its learner; where it is alone, every call returns what it was given."""

    rank: int = 0
    count: int = 1

    @classmethod
    def join(cls, config: Config) -> Self:
        """Meet the other ranks that torchrun started; without any, nothing happens.

        Raises ConfigError if there are not as many as the configuration asks for."""
        wanted = config.learner_ranks
        if wanted == 1:
            return cls()
        if (found := environment("WORLD_SIZE")) != str(wanted):
            raise ConfigError(
                f"learner.ranks or learner.gpus ask for {wanted} ranks, and here {found or 'no'} other was started: "
                f"use torchrun --nproc-per-node {wanted} -m learner RUN_DIR"
            )
        dist.init_process_group("cpu:gloo,cuda:nccl" if config.learner.gpus else "gloo", timeout=_PATIENCE)
        return cls(rank=dist.get_rank(), count=wanted)

    @property
    def leads(self) -> bool:
        """Whether this is rank 0: it forms steps, saves and publishes."""
        return self.rank == 0

    def begin(self, step: int = 0) -> int:
        """Rank 0 says that it has begun, after `step`; the others wait for that and get the step."""
        return self._broadcast([step])[0]

    def order(self, order: Order | None = None) -> Order | None:
        """Rank 0 gives an order, or None to stop; the others wait for it and get it."""
        told = [0, 0, 0, 0] if order is None else [1, *order.cursor, order.step]
        train, segment, offset, step = self._broadcast(told)
        return Order(cursor=(segment, offset), step=step) if train else None

    def add(self, tensor: Tensor) -> Tensor:
        """Replace it on every rank by the sum over all, which is the same to the last bit everywhere."""
        if self.count > 1:
            try:
                dist.all_reduce(tensor)
            except RuntimeError as error:
                raise _lost(error) from error
        return tensor

    def leave(self) -> None:
        """Part from the others, once all of them are done."""
        if self.count > 1:
            dist.destroy_process_group()

    def _broadcast(self, numbers: Sequence[int]) -> list[int]:
        if self.count == 1:
            return list(numbers)
        told = torch.tensor(numbers, dtype=torch.int64)
        try:
            dist.broadcast(told, 0)
        except RuntimeError as error:
            raise _lost(error) from error
        return [int(number) for number in told]


def even_budget(tokens: int, budget_tokens: int, count: int) -> int:
    """A budget of at most `budget_tokens` that cuts `tokens` into as many passes for one rank as for any other."""
    passes = count * ceil(tokens / (budget_tokens * count))
    return min(budget_tokens, ceil(tokens / passes))


def deal(batches: Sequence[MicroBatch], count: int) -> list[list[int]]:
    """The micro-batches (by index) of each rank: the largest first, always to the rank with the least to do.

    A function of the batches alone, so every rank knows every share; one may be empty."""
    shares: list[list[int]] = [[] for _ in range(count)]
    load = [0] * count
    sizes = [batch.ids_T.numel() for batch in batches]
    for index in sorted(range(len(batches)), key=lambda index: -sizes[index]):
        rank = load.index(min(load))
        shares[rank].append(index)
        load[rank] += sizes[index]
    return [sorted(share) for share in shares]


def _lost(error: RuntimeError) -> RankLostError:
    reason = str(error).partition(". ")[0]
    return RankLostError(f"another rank of the learner ended ({reason}); what no checkpoint holds is trained again")
