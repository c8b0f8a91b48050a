"""One recorded episode, played again by the loop that played it (engine.core.episode).

From the record come the tokens that the policy sampled and what language models answered, no more. Everything else is
done again: rendering, parsing, admission, mapping, effects, reveals, checks. The mapping is a fresh one in memory, for
each group, so that the answers are made and not read. Nobody is waited for: injected delays are left out.
"""

from __future__ import annotations

import sys
import time
from collections.abc import AsyncIterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from anyio import to_thread

from engine.chat.chat_format import ChatFormat
from engine.config.load import load
from engine.config.tree import Config
from engine.core.episode import run_episode
from engine.core.seams import EpisodePlan, Policy, Scorer, Seams, User, World
from engine.errors import ConfigError, PolicyError
from engine.llm.journal import Journal, read_journal
from engine.run.compose import scorer_of, user_of, world_of
from engine.run.models import SimulatorModels, open_models, recorded_models
from engine.rundir.layout import RunDir
from engine.stream.reader import read_group_ids
from engine.task import Task
from engine.types import Completion, Episode, EpisodeGroup, Turn
from engine.world.faults import FaultProfile, profiles_of
from engine.world.store import EntryStore, read_store
from engine.world.vetoes import AnswersAsOf, RecordedGroups

_PATIENCE_S = 3600.0
"""Deadline of a replay and of its steps: a plug-in may work as long as it likes, nothing else takes time."""


class RecordedPolicy:
    """A Policy that samples what an episode's record has: the ids are read, their text is decoded again.

    Where the record ends, `then` goes on, if there is one."""

    def __init__(self, episode: Episode, chat: ChatFormat, then: Policy | None = None) -> None:
        self._episode, self._chat, self._then = episode, chat, then
        self._said = [message["content"] for message in episode.messages if message["role"] == "assistant"]

    async def complete(self, turn: Turn) -> Completion:
        """The recorded completion of that turn.

        Raises PolicyError where the record has none and nobody goes on: the replay went another way."""
        episode, tokens = self._episode, self._episode.tokens
        if turn.index >= len(self._said if tokens is None else tokens.spans):
            if self._then is not None:
                return await self._then.complete(turn)
            raise PolicyError(f"{turn.id}: the record has no such turn")
        if tokens is None:
            text, ids, logprobs, ended = self._said[turn.index], None, None, True
        else:
            span = tokens.spans[turn.index]
            first = sum(before.length for before in tokens.spans[: turn.index])
            ids = tokens.ids[span.start : span.start + span.length].tolist()
            logprobs = tokens.logprobs[first : first + span.length].tolist()
            text, ended = self._chat.decode(ids), self._chat.ended(ids)
        return Completion(
            text=text,
            ids=ids,
            logprobs=logprobs,
            adapter=turn.adapter,
            server=episode.server,
            stop="stop" if ended else "length",
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Replayer:
    """What the episodes of a run are played again with."""

    config: Config
    tasks: Mapping[str, Task]
    chat: ChatFormat
    models: SimulatorModels
    user: User
    scorer: Scorer
    answers: EntryStore | None
    """The run's world.sqlite: what it began with, and what people vetoed."""
    places: Mapping[str, RecordedGroups]
    """What was recorded before each group."""
    live: bool
    """Whether models answer what nobody asked before, in a world that knows all answers of the run."""

    @property
    def journal(self) -> Journal | None:
        """What language models answered; None where none was asked."""
        return self.models.journal

    def world(self, group_id: str) -> World:
        """A world that nobody has been in, as it was when the group was played."""
        profiles = {tool: _at_once(profile) for tool, profile in profiles_of(self.config.world.faults).items()}
        return world_of(self.config, self.models, self._answers(group_id), profiles).world

    def _answers(self, group_id: str) -> AnswersAsOf | None:
        if self.answers is None:
            return None
        # The answers of a frozen world are all there are.
        return AnswersAsOf(self.answers, self.places[group_id], whole=self.live or self.config.world.mode == "frozen")

    async def replay(self, group: EpisodeGroup, episode: Episode, world: World) -> Episode:
        """The episode as it comes out now.

        Raises RunError for a journal that was altered, ConfigError for an episode whose task is gone."""
        return await self.play(self.plan(group, episode), RecordedPolicy(episode, self.chat), world)

    def plan(self, group: EpisodeGroup, episode: Episode) -> EpisodePlan:
        """What was to be played, with time for it.

        Raises ConfigError for an episode whose task is gone."""
        task = self.tasks.get(episode.task_id)
        if task is None:
            raise ConfigError(f"{episode.id}: the run's pack has no task {episode.task_id!r}; restore it from a copy")
        return EpisodePlan(
            id=episode.id,
            group_id=group.id,
            task=task,
            seed=episode.seed,
            version=episode.version,
            adapter=episode.adapter,
            limits=replace(self.config.limits.value(), wall_s=_PATIENCE_S, turn_s=_PATIENCE_S),
            sampling=group.sampling,
            queued_s=0.0,
        )

    async def play(self, plan: EpisodePlan, policy: Policy, world: World) -> Episode:
        """What comes of a plan.

        Raises RunError for a journal that was altered."""
        seams = Seams(
            policy=policy,
            world=world,
            user=self.user,
            scorer=self.scorer,
            chat=self.chat,
            clock=time.monotonic,
        )
        # Staleness ended none of the episodes that were scored.
        return await run_episode(plan, seams, stale=lambda _: False)


def _at_once(profile: FaultProfile) -> FaultProfile:
    """The same faults at the same calls, without waiting: a call that hung ended its episode, as one that failed."""
    return replace(profile, latency_s=0.0, timeout=0.0, error=profile.timeout + profile.error)


@asynccontextmanager
async def open_replayer(
    run: RunDir, config: Config, tasks: Mapping[str, Task], live: RunDir | None = None
) -> AsyncIterator[Replayer]:
    """What is needed to play the run's episodes again, until the end of the block; opens no connection.

    With `live`, models are asked what the run's journal does not answer, and that directory keeps what they say. Raises
    ConfigError for a model whose tokenizer is gone, a plug-in that cannot be loaded, and a journal that is missing or
    none."""
    chat = await to_thread.run_sync(_chat, config)
    async with AsyncExitStack() as opened:
        models, answers = SimulatorModels(), None
        if config.endpoints:
            journal = await opened.enter_async_context(read_journal(run.journal))
            models = recorded_models(config, journal)
            if live is not None:
                models = await opened.enter_async_context(open_models(live, config, [journal]))
        if config.world.kind in ("offline", "llm") and await to_thread.run_sync(run.world.exists):
            answers = await opened.enter_async_context(read_store(run.world))
        began_with = (await to_thread.run_sync(load, run.config)).config
        yield Replayer(
            config=config,
            tasks=tasks,
            chat=chat,
            models=models,
            user=user_of(config, models),
            scorer=scorer_of(config, models, began_with),
            answers=answers,
            places=await to_thread.run_sync(_places, run),
            live=live is not None,
        )


def _places(run: RunDir) -> dict[str, RecordedGroups]:
    """For each group, how many were recorded before it in its own stream; the other one does not matter then."""
    training = {id_: RecordedGroups(number, sys.maxsize) for number, id_ in enumerate(read_group_ids(run.trajectories))}
    return training | {id_: RecordedGroups(sys.maxsize, number) for number, id_ in enumerate(read_group_ids(run.eval))}


def _chat(config: Config) -> ChatFormat:
    path = Path(config.model.path)
    if not path.is_dir():
        raise ConfigError(f"{path}: the run's model is gone; put its tokenizer and chat template back there")
    return ChatFormat.load(path, config.policy.system)
