"""The size of the KV cache: its default, how it is set, and the refusal of a run that it cannot hold."""

from __future__ import annotations

import os
from types import SimpleNamespace

import psutil
import pytest
from aiohttp import web
from click.testing import CliRunner

from engine.commands import serve
from engine.config.load import load
from engine.embedded import build
from engine.errors import ConfigError
from engine.rundir.layout import RunDir
from engine.scripted.server import MockServer
from engine.serving.addresses import addresses
from engine.serving.commands import server_commands
from tests.parts.policy_parts import policy_of, serving, tiny_chat

CHAT = tiny_chat()


@pytest.mark.parametrize(("free", "expected"), [(8 << 30, 1 << 18), (4_000, 100), (20, 1)])
def test_the_default_is_a_quarter_of_the_free_memory(free, expected, monkeypatch, tmp_path):
    """At 10 bytes a token; never more than a small model can use, never nothing."""
    monkeypatch.setattr(build, "_CGROUP", tmp_path)
    monkeypatch.setattr(psutil, "virtual_memory", lambda: SimpleNamespace(available=free))
    assert build.default_kv_tokens(10) == expected


@pytest.mark.parametrize(("limit", "expected"), [("max", 100), ("2000", 25)])
def test_a_container_has_the_memory_of_its_group(limit, expected, monkeypatch, tmp_path):
    """The machine's free memory is not the container's."""
    (tmp_path / "memory.max").write_text(f"{limit}\n")
    (tmp_path / "memory.current").write_text("1000\n")
    monkeypatch.setattr(build, "_CGROUP", tmp_path)
    monkeypatch.setattr(psutil, "virtual_memory", lambda: SimpleNamespace(available=4_000))
    assert build.default_kv_tokens(10) == expected


@pytest.mark.parametrize(("value", "passed"), [("auto", []), (5000, ["--max-total-tokens", "5000"])])
def test_the_key_reaches_the_server(value, passed, tmp_path):
    """`policy.kv_tokens` is the server's `--max-total-tokens`; auto leaves it to the server."""
    config = load(None, [f"policy.kv_tokens={value}"]).config
    argv = server_commands(RunDir(tmp_path), config, addresses(config, [1]))[0].argv
    at = argv.index("--max-total-tokens") if "--max-total-tokens" in argv else len(argv)
    assert list(argv[at : at + 2]) == passed


def test_the_key_is_refused_where_there_is_no_embedded_server():
    """It would have no effect."""
    with pytest.raises(ConfigError, match=r"policy\.kv_tokens has no effect"):
        load(None, ["policy.launch=none", 'policy.urls=["http://x"]', "policy.kv_tokens=5"])


def test_serve_passes_its_limits_on(monkeypatch):
    """Those that are given, under the server's names."""
    started: list[list[str]] = []
    monkeypatch.setattr(os, "execve", lambda _program, argv, _environment: started.append(argv))
    options = ["--max-total-tokens", "9000", "--max-running", "3", "--max-lora-rank", "16", "--port", "0"]
    for arguments in (options, []):
        done = CliRunner().invoke(serve.command, arguments, catch_exceptions=False)
        assert done.exit_code == 0, done.output
    given, plain = started
    for flag, value in zip(options[::2], options[1::2], strict=True):
        assert given[given.index(flag) + 1] == value
    assert "--max-total-tokens" not in plain
    assert plain[plain.index("--port") + 1] == "30000"


class Sized(MockServer):
    """A mock server that says its size."""

    said: dict[str, object] = {}  # noqa: RUF012 - one server a test

    async def info(self, _request: web.Request) -> web.Response:
        return web.json_response({"max_loaded_loras": 8, **self.said})


@pytest.mark.parametrize(
    ("said", "named"),
    [
        ({"max_total_num_tokens": 900}, r"holds 900 tokens .*limits\.tokens = 1024: .*policy\.kv_tokens.* to 900"),
        ({"context_length": 512}, r"holds 512 tokens .*limits\.tokens = 1024: .*longer context.* to 512"),
        ({"max_total_num_tokens": 1024, "context_length": None}, None),
        ({}, None),
    ],
)
async def test_a_server_too_small_for_an_episode_is_refused_at_the_start(said, named):
    """Both numbers and both remedies; a server that says nothing is taken as it is."""
    server = Sized(chat=CHAT)
    server.said = said
    async with serving(server) as url, policy_of(CHAT, url) as (_, servers):
        if named is None:
            assert await servers.slots(1024) == 8
            return
        with pytest.raises(ConfigError, match=f"{url} {named}"):
            await servers.slots(1024)
