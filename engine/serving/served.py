"""Policy servers outside a run: for a measurement, a bench or a test; and what a supervisor asks of one."""

from __future__ import annotations

import socket
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from http.client import HTTPConnection, HTTPException
from pathlib import Path
from urllib.parse import urlsplit

from engine.config import Config
from engine.errors import RunError
from engine.processes import Child
from engine.rundir import RunDir
from engine.serving.commands import server_commands

_PROBE_S = 0.5
_POLL_S = 0.1


@contextmanager
def served(run: RunDir, config: Config, adapter_root: Path | None = None) -> Iterator[list[str]]:
    """The servers that a configuration starts, for the length of the block; gives their URLs once all are ready.

    `adapter_root` as in server_commands. Raises RunError with the last words of one that ends, or is not ready within
    policy.start_s; ConfigError as server_commands does."""
    ports = free_ports(config.started_servers)
    children = [Child(command) for command in server_commands(run, config, ports, adapter_root)]
    urls = [f"http://127.0.0.1:{port}" for port in ports]
    try:
        for child in children:
            child.start(0)
        deadline = time.monotonic() + config.policy.start_s
        for child, url in zip(children, urls, strict=True):
            while not server_is_ready(url):
                if child.ended() is not None or time.monotonic() > deadline:
                    raise RunError(child.last_words(f"{child.name} did not start"))
                time.sleep(_POLL_S)
        yield urls
    finally:
        for child in children:
            child.stop()


def free_ports(count: int) -> list[int]:
    """Ports for the whole life of a run: a restarted server comes back under the same address."""
    with ExitStack() as bound:
        probes = [bound.enter_context(socket.socket()) for _ in range(count)]
        for probe in probes:
            probe.bind(("127.0.0.1", 0))
        return [int(probe.getsockname()[1]) for probe in probes]


def server_is_ready(url: str) -> bool:
    """Whether a policy server answers GET /ready with 200."""
    parts = urlsplit(url)
    connection = HTTPConnection(parts.hostname or "127.0.0.1", parts.port, timeout=_PROBE_S)
    try:
        connection.request("GET", "/ready")
        return connection.getresponse().status == 200
    except (OSError, HTTPException):
        return False
    finally:
        connection.close()
