"""From a configuration to the seams of an episode: policy, chat format, world, user and scorer."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Coroutine, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import anyio

from engine.chat.chat_format import ChatFormat
from engine.config.plugins import plugin
from engine.config.tree import Config
from engine.core.seams import Scorer, Seams, User, World
from engine.reward.judges import judge_of
from engine.reward.rubric import RubricScorer
from engine.run.costs import account
from engine.run.models import SimulatorModels, open_models
from engine.run.served_policy import STARTED_READY_S, OnEvent, Served, open_policy
from engine.rundir.event_lines import open_event_lines
from engine.rundir.layout import RunDir
from engine.telemetry.metrics import MetricRow
from engine.world.faults import FaultLines, FaultProfile, FaultyWorld, OnFault, profiles_of, unheard
from engine.world.llm_tools import FrozenSimulator, LlmSimulator
from engine.world.llm_user import LlmUser
from engine.world.mapped import MappedWorld
from engine.world.mapping import ToolSimulator
from engine.world.offline import OfflineSimulator, OfflineUser
from engine.world.store import EntryStore, open_store
from engine.world.vetoes import AnswersAsOf, Vetoes

Act = Callable[[], Coroutine[Any, Any, None]]


@dataclass(frozen=True, slots=True, kw_only=True)
class RunParts:
    """What a run is composed of."""

    config: Config
    seams: Seams
    served: Served
    flush: Act
    """Commits the world's mapping, what was asked of language models, and the faults that were injected."""
    account: Callable[[], MetricRow]
    """What language models were asked and how tool calls were answered, since the start."""


@asynccontextmanager
async def build_parts(
    run: RunDir, config: Config, clock: Callable[[], float], on_event: OnEvent, *, ready_s: float = STARTED_READY_S
) -> AsyncIterator[RunParts]:
    """Everything that an episode needs, ready to use (servers within `ready_s`), and closed at the end.

    Raises ConfigError for a plug-in that cannot be loaded, a model without a usable chat template or a server too small
    for an episode, RunError for servers that do not get ready."""
    chat = await anyio.to_thread.run_sync(ChatFormat.load, Path(config.model.path), config.policy.system)
    served_by = open_policy(run, config, chat, clock, on_event, ready_s)
    async with open_models(run, config) as models, open_world(run, config, models, clock) as made, served_by as served:
        user, scorer = user_of(config, models), scorer_of(config, models)
        seams = Seams(policy=served.policy, world=made.world, user=user, scorer=scorer, chat=chat, clock=clock)

        async def flush() -> None:
            await made.flush()
            await models.flush()

        def counted() -> MetricRow:
            return account(models, made.mapped.mapping.counts if made.mapped is not None else None)

        yield RunParts(config=config, seams=seams, served=served, flush=flush, account=counted)


@dataclass(frozen=True, slots=True, kw_only=True)
class ComposedWorld:
    """Who answers tool calls, faults included."""

    world: World
    mapped: MappedWorld | None = None
    """The world behind the faults, which keeps its answers; None where somebody's own does."""


@dataclass(frozen=True, slots=True, kw_only=True)
class OpenWorld(ComposedWorld):
    """The world of a run that keeps its answers and its faults in files."""

    flush: Act
    """Commits both."""


@asynccontextmanager
async def open_world(
    run: RunDir, config: Config, models: SimulatorModels, clock: Callable[[], float]
) -> AsyncIterator[OpenWorld]:
    """The world of a run, on its world.sqlite and faults.jsonl where they are needed, until the end of the block.

    Raises ConfigError for a plug-in that cannot be loaded, and for faults that are none."""
    profiles = profiles_of(config.world.faults)
    async with AsyncExitStack() as opened:
        store = await opened.enter_async_context(open_store(run.world)) if _is_mapped(config) else None
        lines = await opened.enter_async_context(open_event_lines(run.faults)) if profiles else None
        on_fault = unheard if lines is None else FaultLines(lines, clock).add
        made = world_of(config, models, store, profiles, on_fault)

        async def flush() -> None:
            if made.mapped is not None:
                await made.mapped.flush()
            if lines is not None:
                await lines.flush()

        yield OpenWorld(world=made.world, mapped=made.mapped, flush=flush)


def world_of(
    config: Config,
    models: SimulatorModels,
    store: EntryStore | AnswersAsOf | None,
    profiles: Mapping[str, FaultProfile],
    on_fault: OnFault = unheard,
) -> ComposedWorld:
    """Who answers tool calls, with faults by these profiles; without a store its answers live as long as it does.

    Raises ConfigError for a plug-in that cannot be loaded."""
    if not _is_mapped(config):
        return ComposedWorld(world=plugin(config.world.kind, "world.kind"))
    mapped = mapped_world(config, models, store)
    faulty = FaultyWorld(mapped, profiles, config.run.seed, on_fault) if profiles else None
    return ComposedWorld(world=faulty or mapped, mapped=mapped)


def _is_mapped(config: Config) -> bool:
    return config.world.kind in ("offline", "llm")


def mapped_world(config: Config, models: SimulatorModels, store: EntryStore | AnswersAsOf | None) -> MappedWorld:
    """The world of an offline or llm configuration; without a store its answers live as long as it does."""
    simulator: ToolSimulator = OfflineSimulator()
    if config.world.mode == "frozen":
        simulator = FrozenSimulator()
    elif config.world.kind == "llm":
        vetoes = Vetoes() if store is None else Vetoes.of(store)
        simulator = LlmSimulator(models.askers[config.world.endpoint], vetoes)
    return MappedWorld(simulator, store, mode=config.world.mode)


def user_of(config: Config, models: SimulatorModels) -> User:
    """Who answers the agent's questions.

    Raises ConfigError for a plug-in that cannot be loaded."""
    if config.user.kind == "llm":
        return LlmUser(models.askers[config.user.endpoint], config.user.profile)
    return OfflineUser() if config.user.kind == "offline" else plugin(config.user.kind, "user.kind")


def scorer_of(config: Config, models: SimulatorModels, began_with: Config | None = None) -> Scorer:
    """Who makes rewards; `began_with` is the configuration of the run whose journal is looked up, where it is another.

    Raises ConfigError for a plug-in that cannot be loaded, and a kind of judge that there is not."""
    if config.scorer.kind != "rubric":
        scorer: Scorer = plugin(config.scorer.kind, "scorer.kind")
        return scorer
    name = config.scorer.judge
    return RubricScorer(judge_of(config, models.askers[name], began_with) if name else None)
