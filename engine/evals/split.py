"""Reward of one adapter version over the tasks of a split: one episode per task, outside the group budget.

Pins one version for all its episodes and has live slots of its own (invariant *pinned-version*). Its episodes go to
eval/, which the learner never reads.
"""

from __future__ import annotations

import math
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import asdict, dataclass

import anyio

from engine.config.tree import Config
from engine.core.episode import run_episode
from engine.core.seams import EpisodePlan, Seams
from engine.task import Task
from engine.types import Episode, EpisodeGroup, Limits, Sampling, Source


@dataclass(frozen=True, slots=True, kw_only=True)
class Suite:
    """What to measure, and how."""

    name: str
    """heldout_before, validation, heldout_after, or the name an `eval` command gives."""
    tasks: Sequence[tuple[int, Task]]
    """Index within the pack, and the task; the index makes the episode's id and seed."""
    limits: Limits
    sampling: Sampling
    live_slots: int
    seed: int

    @classmethod
    def of(cls, config: Config, name: str, tasks: Sequence[tuple[int, Task]]) -> Suite:
        """These tasks with the limits, sampling, slots and seed of a configuration."""
        return cls(
            name=name,
            tasks=tasks,
            limits=config.limits.value(),
            sampling=config.sampling,
            live_slots=config.eval.live_slots,
            seed=config.run.seed,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Evaluation:
    """What came out; masked episodes are counted and outside every mean."""

    name: str
    version: int
    split: str
    tasks: int
    episodes: int
    masked: int
    mean: float
    ci95: float
    """Half width of the 95 % confidence interval of the mean."""
    F: float
    N: float
    I: float  # noqa: E741 - the paper's name
    start_s: float
    end_s: float

    def row(self) -> dict[str, object]:
        """As written to eval/evaluations.jsonl."""
        return asdict(self)


def mean_ci95(values: Sequence[float]) -> tuple[float, float]:
    """Mean and half width of its 95 % confidence interval (normal approximation); zeros for no values."""
    if not values:
        return 0.0, 0.0
    mean = sum(values) / len(values)
    variance = sum((value - mean) ** 2 for value in values) / max(1, len(values) - 1)
    return mean, 1.96 * math.sqrt(variance / len(values))


async def evaluate(
    suite: Suite,
    seams: Seams,
    version: int,
    adapter: str | None,
    emit: Callable[[EpisodeGroup], Awaitable[EpisodeGroup]],
    live: Callable[[int], None],
) -> Evaluation:
    """Play every task of `suite` once with one adapter version; `live` hears +1 and -1 as episodes start and end.

    `emit` returns a group as it was recorded, which is what is measured."""
    slots = anyio.CapacityLimiter(suite.live_slots)
    episodes: list[Episode] = []
    start_s = seams.clock()

    async def play(index: int, task: Task) -> None:
        group_id = f"e{max(version, 0):05d}-{index:04d}"
        async with slots:
            live(1)
            plan = EpisodePlan(
                id=f"{group_id}.00",
                group_id=group_id,
                task=task,
                seed=suite.seed * 1_000_003 + index,
                version=version,
                adapter=adapter,
                limits=suite.limits,
                sampling=suite.sampling,
                queued_s=seams.clock(),
            )
            try:
                episode = await run_episode(plan, seams, stale=lambda _: False)
            finally:
                live(-1)
        recorded = await emit(
            EpisodeGroup(
                id=group_id,
                position=index,
                task_id=task.id,
                source=Source.EVAL,
                sampling=suite.sampling,
                episodes=(episode,),
            )
        )
        episodes.extend(recorded.episodes)

    async with anyio.create_task_group() as tg:
        for index, task in suite.tasks:
            tg.start_soon(play, index, task)
    return _summarize(suite, version, episodes, start_s, seams.clock())


def _summarize(suite: Suite, version: int, episodes: Sequence[Episode], start_s: float, end_s: float) -> Evaluation:
    rewards = [episode.reward for episode in episodes if episode.reward is not None]
    mean, half = mean_ci95([reward.value for reward in rewards])
    return Evaluation(
        name=suite.name,
        version=version,
        split=suite.tasks[0][1].split if suite.tasks else "",
        tasks=len(suite.tasks),
        episodes=len(episodes),
        masked=len(episodes) - len(rewards),
        mean=mean,
        ci95=half,
        F=mean_ci95([reward.F for reward in rewards])[0],
        N=mean_ci95([reward.N for reward in rewards])[0],
        I=mean_ci95([reward.I for reward in rewards])[0],
        start_s=start_s,
        end_s=end_s,
    )
