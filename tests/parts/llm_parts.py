"""What the tests of simulators share: the scripted LLM endpoint on a port of its own, and askers on it."""

from collections.abc import AsyncIterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

from aiohttp import web

from engine.config.endpoints import EndpointSection
from engine.llm.asking import JournaledAsker
from engine.llm.endpoint import Reachable, open_endpoint
from engine.llm.journal import open_journal
from engine.llm.question import ChatPrompt
from engine.scripted.endpoint import ScriptedEndpoint as Scripted
from tests.parts.places import ASSETS

TINY = str(ASSETS / "tiny-model")
ECHO = {"type": "object", "properties": {"ok": {"type": "boolean"}}, "required": ["ok"]}


def prompt(document: str = '{"as":"nobody"}', schema: Mapping[str, Any] = ECHO, temperature: float = 0.0) -> ChatPrompt:
    """A prompt with that document."""
    messages = ({"role": "system", "content": "Answer."}, {"role": "user", "content": document})
    return ChatPrompt(messages, schema, temperature)


@asynccontextmanager
async def listening(application: web.Application) -> AsyncIterator[str]:
    """An application on a free port; gives its URL."""
    runner = web.AppRunner(application, shutdown_timeout=0.1)
    await runner.setup()
    try:
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        yield f"http://127.0.0.1:{runner.addresses[0][1]}"
    finally:
        await runner.cleanup()


@asynccontextmanager
async def reachable(url: str, key: str | None = None, **settings: Any) -> AsyncIterator[Reachable]:
    """An endpoint at `url`; native ones use the tiny model's chat template."""
    native = {"model": TINY} if settings.get("api") == "sglang" else {}
    section = EndpointSection.model_validate({"url": url, **native, **settings})
    async with open_endpoint("sim", section, url, key) as opened:
        yield opened


@asynccontextmanager
async def asking(directory: Path, scripted: Scripted | None = None, **settings: Any) -> AsyncIterator[JournaledAsker]:
    """An asker on a scripted endpoint, with its journal in `directory`."""
    async with AsyncExitStack() as opened:
        url = await opened.enter_async_context(listening((scripted or Scripted()).application()))
        journal = await opened.enter_async_context(open_journal(directory / f"{settings.get('api')}.sqlite"))
        endpoint = await opened.enter_async_context(reachable(url, **settings))
        yield JournaledAsker(journal, endpoint)
