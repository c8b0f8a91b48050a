"""Recorded episodes scored again by the run's own scorer: what a judge decided before is looked up, nothing guessed.

Verdicts come from the run's journal, then from judge.sqlite; whoever may ask the judge keeps its answers in the latter,
so that the run's own files stay as they are.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from itertools import islice
from pathlib import Path
from typing import NamedTuple

from anyio import create_task_group, to_thread

from engine.config.load import load
from engine.config.tree import Config
from engine.core.seams import Scorer, ScoringRecord, returned
from engine.errors import RewardError, boundary
from engine.judging.asked_judge import AskedJudge, Once
from engine.llm.asking import JournaledAsker
from engine.llm.journal import Journal, open_journal, read_journal
from engine.reward.judges import judge_of
from engine.reward.rubric import RubricScorer
from engine.run.compose import scorer_of
from engine.run.models import SimulatorModels
from engine.rundir.layout import RunDir
from engine.schema.legible import legible
from engine.stream.reader import iter_headers
from engine.task import Task
from engine.types import Episode, Reward

_BATCH = 256
"""Episodes that are scored at once, so that a judge gets many questions together."""


class Again(NamedTuple):
    """A scored episode, and the reward that it gets now."""

    episode: Episode
    reward: Reward | None
    """None where the task is gone or the scorer gives none."""
    error: str
    """Why the scorer gives none."""


@asynccontextmanager
async def rescorer(run: RunDir, config: Config, asked: AskedJudge | None) -> AsyncIterator[Scorer]:
    """The scorer of a configuration, over what its judge said before; only `asked` is asked for more (by rubrics).

    Raises ConfigError for a journal that is none, an API key that is not set, and a plug-in that cannot be loaded."""
    async with AsyncExitStack() as opened:
        name = config.scorer.judge
        paths = [run.journal, run.judge] if asked is None else [run.journal]
        journals = [await opened.enter_async_context(read_journal(path)) for path in paths if await _there(path)]
        began_with = (await to_thread.run_sync(load, run.config)).config
        if asked is not None:
            own: Journal = await opened.enter_async_context(open_journal(run.judge))
            reachable = await opened.enter_async_context(asked.open())
            once = Once(JournaledAsker(own, reachable, journals))
            yield RubricScorer(judge_of(config, once, began_with))
        elif name and journals:
            recorded = JournaledAsker(journals[0], None, journals[1:])
            yield scorer_of(config, SimulatorModels(askers={name: recorded}), began_with)
        else:
            alone = config.model_copy(update={"scorer": config.scorer.model_copy(update={"judge": ""})})
            yield scorer_of(alone, SimulatorModels())


async def _there(path: Path) -> bool:
    return await to_thread.run_sync(path.exists)


async def rescored(place: Path, scorer: Scorer, tasks: Mapping[str, Task]) -> AsyncIterator[Again]:
    """Every episode of a stream that has a reward, in its order.

    Raises StreamError at a damaged segment, RunError for a journal that was altered."""
    episodes = (episode for header in iter_headers(place) for episode in header.group.episodes if episode.scored)

    async def score(episode: Episode) -> None:
        found[episode.id] = await _again(scorer, tasks, episode)

    while batch := await to_thread.run_sync(lambda: list(islice(episodes, _BATCH))):
        found: dict[str, Again] = {}
        async with create_task_group() as tg:
            for episode in batch:
                tg.start_soon(score, episode)
        for episode in batch:
            yield found[episode.id]


async def _again(scorer: Scorer, tasks: Mapping[str, Task], episode: Episode) -> Again:
    task = tasks.get(episode.task_id)
    if task is None:
        return Again(episode, None, "")
    try:
        async with boundary(RewardError, "scorer"):
            return Again(episode, returned(await scorer.score(ScoringRecord.of(task, episode)), Reward), "")
    except RewardError as error:
        return Again(episode, None, legible(str(error)))
