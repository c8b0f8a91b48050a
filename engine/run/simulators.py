"""From a configuration to whoever plays the other sides: world, user and scorer, and the models that they ask."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

from anyio import to_thread

from engine.config.environment import api_key
from engine.config.plugins import foreign, load_object
from engine.config.tree import Config
from engine.core.seams import Scorer, User
from engine.llm.asking import JournaledAsker
from engine.llm.endpoint import Endpoint, open_endpoint
from engine.llm.journal import Journal, open_journal
from engine.reward.judges import judge_of
from engine.reward.rubric import RubricScorer
from engine.rundir.layout import RunDir
from engine.serving.addresses import endpoint_urls
from engine.world.llm_tools import FrozenSimulator, LlmSimulator
from engine.world.llm_user import LlmUser
from engine.world.mapped import MappedWorld
from engine.world.mapping import ToolSimulator
from engine.world.offline import OfflineSimulator, OfflineUser
from engine.world.store import EntryStore
from engine.world.vetoes import AnswersAsOf, Vetoes


@dataclass(frozen=True, slots=True, kw_only=True)
class SimulatorModels:
    """The language models of a run, by the name of their endpoint; none where everything is offline."""

    askers: Mapping[str, JournaledAsker] = field(default_factory=dict)
    endpoints: Mapping[str, Endpoint] = field(default_factory=dict)
    """Those that can be reached; none where the journal alone answers."""
    journal: Journal | None = None

    async def flush(self) -> None:
        """Commit every exchange so far; await it before writing a frame that used them."""
        if self.journal is not None:
            await self.journal.flush()


@asynccontextmanager
async def open_models(run: RunDir, config: Config, earlier: Sequence[Journal] = ()) -> AsyncIterator[SimulatorModels]:
    """The endpoints of a run and its journal, until the end of the block; `earlier` ones are looked up first.

    Raises ConfigError for an API key that is not set, a model without a chat template, and a journal that is none."""
    if not config.endpoints:
        yield SimulatorModels()
        return
    urls = await to_thread.run_sync(endpoint_urls, run, config)
    async with AsyncExitStack() as opened:
        journal = await opened.enter_async_context(open_journal(run.journal))
        askers, endpoints = {}, {}
        for name, settings in config.endpoints.items():
            key = api_key(settings.api_key_env, f"endpoints.{name}.api_key_env")
            reachable = await opened.enter_async_context(open_endpoint(name, settings, urls[name], key))
            askers[name], endpoints[name] = JournaledAsker(journal, reachable, earlier), reachable.endpoint
        yield SimulatorModels(askers=askers, endpoints=endpoints, journal=journal)


def recorded_models(config: Config, journal: Journal) -> SimulatorModels:
    """The same models as far as the journal remembers what they said; nobody else is asked."""
    return SimulatorModels(askers={name: JournaledAsker(journal, None) for name in config.endpoints}, journal=journal)


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


def plugin(name: str, key: str) -> Any:
    """An object of the class that a configuration names.

    Raises ConfigError if it cannot be loaded, or made without arguments."""
    made = load_object(name, key)
    with foreign(f"{key} = {name!r}: making one, without arguments,"):
        return made()
