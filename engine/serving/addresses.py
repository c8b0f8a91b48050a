"""Where the servers of a run listen: ports, how long each start may take, and servers.json, which names them."""

from __future__ import annotations

import socket
from collections.abc import Iterable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass

from engine.config.tree import Config
from engine.rundir.layout import RunDir, read_json, write_json


@dataclass(frozen=True, slots=True, kw_only=True)
class Address:
    """A server that a run starts, as whoever waits for it sees it."""

    port: int
    start_s: float
    """How long it may take to get ready."""
    start_key: str
    """The key that says so."""

    @property
    def url(self) -> str:
        """Its base URL."""
        return f"http://127.0.0.1:{self.port}"


def addresses(config: Config, ports: Iterable[int]) -> list[Address]:
    """Every server that a run starts, on the first of `ports`: the policy's, then that of each started endpoint."""
    starts = [(config.policy.start_s, "policy.start_s")] * config.started_servers
    starts += [(one.start_s, f"endpoints.{name}.start_s") for name, one in config.started_endpoints.items()]
    return [
        Address(port=port, start_s=start_s, start_key=key)
        for (start_s, key), port in zip(starts, ports, strict=False)  # there may be more ports, without end
    ]


def free_addresses(config: Config) -> list[Address]:
    """Addresses for the whole life of a run: a restarted server comes back under the same one."""
    with ExitStack() as bound:
        probes = [
            bound.enter_context(socket.socket()) for _ in range(config.started_servers + len(config.started_endpoints))
        ]
        for probe in probes:
            probe.bind(("127.0.0.1", 0))
        return addresses(config, [int(probe.getsockname()[1]) for probe in probes])


def write_addresses(run: RunDir, config: Config, started: Sequence[Address]) -> list[str]:
    """Write servers.json: the policy servers, started or named, whose URLs are returned, and the started endpoints.

    Raises RunError if the disk does not take it."""
    urls = [address.url for address in started]
    servers = urls[: config.started_servers] or list(config.policy.urls)
    endpoints = dict(zip(config.started_endpoints, urls[config.started_servers :], strict=True))
    write_json(run.path / "servers.json", {"urls": servers, "endpoints": endpoints})
    return servers


def endpoint_urls(run: RunDir, config: Config) -> dict[str, str]:
    """The base URL of every endpoint: the one that the configuration gives, or of the server that was started for it.

    Raises RunError if servers.json cannot be read."""
    listed = (read_json(run.path / "servers.json") or {}).get("endpoints", {})
    return {
        name: listed[name] if endpoint.launch == "sglang" else endpoint.url
        for name, endpoint in config.endpoints.items()
    }
