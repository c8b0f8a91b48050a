"""The two servers, each started once for the whole suite, and the engine's view of their model."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator

import aiohttp
import pytest
from tokenizers import Tokenizer

from engine.chat.chat_format import ChatFormat
from tests.conformance.calls import client
from tests.conformance.differences import Differences
from tests.conformance.servers import Files, Subject, embedded, make_files, sglang
from tests.parts.sglang_environment import needs_sglang


@pytest.fixture(scope="package")
def files(tmp_path_factory) -> Files:
    """The model and the adapters of both servers."""
    return make_files(tmp_path_factory.mktemp("conformance"))


@pytest.fixture(
    scope="package",
    params=[
        pytest.param(embedded, id="embedded"),
        pytest.param(sglang, id="sglang", marks=[pytest.mark.slow, needs_sglang]),
    ],
)
def server(request, files) -> Iterator[Subject]:
    """Each server in turn, started once."""
    with request.param(files) as subject:
        yield subject


@pytest.fixture
def differs(server) -> Differences:
    """What this server does in its own way."""
    return server.differs


@pytest.fixture
async def http(server) -> AsyncIterator[aiohttp.ClientSession]:
    """A client of this server."""
    async with client(server.url) as session:
        yield session


@pytest.fixture(scope="package")
def chat(files) -> ChatFormat:
    """The engine's own view of the model."""
    return ChatFormat.load(files.model)


@pytest.fixture(scope="package")
def tokenizer(files) -> Tokenizer:
    """The model's tokenizer, without the engine."""
    return Tokenizer.from_file(str(files.model / "tokenizer.json"))
