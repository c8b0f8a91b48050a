"""The language models of a run: their endpoints, and the journal of what they were asked and answered."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field

from anyio import to_thread

from engine.config.environment import api_key
from engine.config.tree import Config
from engine.llm.asking import JournaledAsker
from engine.llm.endpoint import Endpoint, open_endpoint
from engine.llm.journal import Journal, open_journal
from engine.rundir.layout import RunDir
from engine.serving.addresses import endpoint_urls


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
