"""A judge asked about recorded episodes, several times each: to decide what executable checks decide too.

All items of a rubric go into one question, as a run asks about those without a check. Each repeat is a question of its
own, and so is the same one to another model, at another temperature or under other instructions. The answers are kept
in judge.sqlite: what was asked before is not asked again.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Iterator, Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, field
from hashlib import blake2b
from typing import NamedTuple

from anyio import CapacityLimiter, create_task_group

from engine.core.seams import ScoringRecord
from engine.errors import RewardError
from engine.judging.asked_judge import AskedJudge, Once
from engine.llm.asking import JournaledAsker, Tally
from engine.llm.journal import Journal, open_journal
from engine.reward.judges import identity, made_judge
from engine.reward.rubric import reward, rubric_items
from engine.rundir.layout import RunDir
from engine.stream.reader import iter_headers
from engine.task import Task
from engine.types import Episode, Reward


@dataclass(frozen=True, slots=True, kw_only=True)
class Judged:
    """One recorded episode, and what the judge said of it each time."""

    episode: Episode
    task: Task
    rewards: dict[int, Reward] = field(default_factory=dict)
    """Of each repeat that the judge decided; verdicts in the order of the rubric's items."""
    failures: dict[int, str] = field(default_factory=dict)
    """Why it did not decide another one."""

    @property
    def record(self) -> ScoringRecord:
        """What a judge sees."""
        return ScoringRecord.of(self.task, self.episode)


class Cost(NamedTuple):
    """What the answers took, whenever they were asked for; refused replies are calls too."""

    calls: int
    prompt_tokens: int
    completion_tokens: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """What came out."""

    judged: Sequence[Judged]
    cost: Cost
    tally: Tally
    """How the questions went this time."""


def sample(run: RunDir, tasks: Mapping[str, Task], episodes: int, seed: int) -> tuple[list[Judged], int]:
    """Scored episodes of training and evaluations, drawn by seed and id, and of how many; nobody was asked yet.

    A larger sample holds the smaller one. Raises StreamError at a damaged segment."""
    count = 0

    def scored() -> Iterator[Episode]:
        nonlocal count
        for place in (run.trajectories, run.eval):
            for header in iter_headers(place):
                for episode in header.group.episodes:
                    if episode.scored and episode.task_id in tasks:
                        count += 1
                        yield episode

    def drawn(episode: Episode) -> bytes:
        return blake2b(f"{seed}:{episode.id}".encode(), digest_size=8).digest()

    chosen = heapq.nsmallest(episodes, scored(), key=drawn)
    return [Judged(episode=episode, task=tasks[episode.task_id]) for episode in chosen], count


async def ask_again(
    run: RunDir, asked: AskedJudge, judged: Sequence[Judged], repeats: int, say: Callable[[int, int], None]
) -> Asked:
    """Ask the judge about every episode, `repeats` times; what it says is added to `judged`, `say` hears how far it is.

    Raises ConfigError as AskedJudge.open does and for a judge.sqlite that is no journal, RunError for one that was
    altered."""
    async with open_journal(run.judge) as journal, asked.open() as reachable:
        asker, done = JournaledAsker(journal, reachable), 0
        once, limiter = Once(asker), CapacityLimiter(2 * asked.settings.concurrency)

        async def ask(one: Judged, repeat: int) -> None:
            nonlocal done
            judge = made_judge(asked.kind, once, {"repeat": repeat, **identity(asked.kind, asked.settings)})
            async with limiter:
                try:
                    one.rewards[repeat] = reward(await judge.decide(list(rubric_items(one.task.rubric)), one.record))
                except RewardError as error:
                    one.failures[repeat] = str(error)
            done += 1
            say(done, repeats * len(judged))

        async with create_task_group() as tg:
            for one in judged:
                for repeat in range(repeats):
                    tg.start_soon(ask, one, repeat)
        return Asked(judged=judged, cost=await _cost(journal, once.subjects), tally=asker.tallies["judge"])


async def _cost(journal: Journal, subjects: AbstractSet[str]) -> Cost:
    calls = prompt_tokens = completion_tokens = 0
    async for exchange in journal.exchanges("judge"):
        if exchange.subject in subjects:
            calls += 1
            prompt_tokens += exchange.prompt_tokens
            completion_tokens += exchange.completion_tokens
    return Cost(calls, prompt_tokens, completion_tokens)
