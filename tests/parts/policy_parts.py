"""Parts for the tests of the policy client: a model directory without weights, turns, and mock servers in process."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import cache
from pathlib import Path
from tempfile import mkdtemp
from typing import Any

import orjson
from aiohttp import web
from tokenizers import Tokenizer

from engine.chat.chat_format import ChatFormat
from engine.policy.client import HttpPolicy
from engine.policy.servers import ServerEvent, Servers
from engine.scripted.server import MockServer
from engine.types import Limits, Sampling, Turn
from learner.pretrain.tokenizer import write_tokenizer
from tests.parts.waiting import LIMIT_S

RUN_ID = "demo-1f0c2a9b"
ADAPTER = f"{RUN_ID}-v00003"
LIMITS = Limits(turns=8, tokens=1024, completion_tokens=48, wall_s=60.0, turn_s=10.0)


def write_model(directory: Path) -> Path:
    """Tokenizer, template and configuration of the tiny model."""
    write_tokenizer(directory)
    tokenizer = Tokenizer.from_file(str(directory / "tokenizer.json"))
    config = {
        "architectures": ["Qwen3ForCausalLM"],
        "vocab_size": tokenizer.get_vocab_size(),
        "max_position_embeddings": 32_768,
        "eos_token_id": tokenizer.token_to_id("<|im_end|>"),
        "hidden_size": 16,
        "intermediate_size": 32,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "num_hidden_layers": 2,
        "head_dim": 8,
    }
    (directory / "config.json").write_bytes(orjson.dumps(config))
    return directory


@cache
def tiny_model() -> Path:
    """One such directory for the whole test session."""
    return write_model(Path(mkdtemp(prefix="synth-engine-tests-")))


@cache
def tiny_chat() -> ChatFormat:
    """The chat format of the tiny model."""
    return ChatFormat.load(tiny_model())


def turn(chat: ChatFormat, episode_id: str = "g000178.03", index: int = 0, **changes: object) -> Turn:
    """A turn with a short prompt."""
    messages = ({"role": "system", "content": "Be good."}, {"role": "user", "content": "Please pack a flute."})
    fields: dict[str, Any] = {
        "ids": chat.encode("Please pack a flute."),
        "messages": messages,
        "tools": (),
        "adapter": ADAPTER,
        "sampling": Sampling(),
        "limits": LIMITS,
        "group_id": episode_id.partition(".")[0],
        "episode_id": episode_id,
        "index": index,
    }
    return Turn(**{**fields, **changes})


def adapter_directory(base: Path, version: int = 3) -> Path:
    """A directory that the mock server takes for an adapter."""
    path = base / f"v{version:05d}"
    path.mkdir(parents=True, exist_ok=True)
    (path / "adapter_config.json").write_text("{}")
    return path


@asynccontextmanager
async def serving(mock: MockServer, port: int = 0) -> AsyncIterator[str]:
    """The URL of a mock server that runs inside this block, on a real socket."""
    runner = web.AppRunner(mock.application(), shutdown_timeout=0.1)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", port).start()
    try:
        yield f"http://127.0.0.1:{runner.addresses[0][1]}"
    finally:
        await runner.cleanup()


@asynccontextmanager
async def policy_of(
    chat: ChatFormat,
    *urls: str,
    connections: int = 64,
    events: list[ServerEvent] | None = None,
    api_key: str | None = None,
) -> AsyncIterator[tuple[HttpPolicy, Servers]]:
    """A client of these servers, ready."""
    heard = [] if events is None else events
    clock = iter(range(1_000_000)).__next__
    async with (
        Servers(urls, run_id=RUN_ID, clock=lambda: float(clock()), on_event=heard.append, api_key=api_key) as servers,
        HttpPolicy(servers, chat, connections=connections) as policy,
    ):
        await servers.ready(LIMIT_S)
        yield policy, servers
