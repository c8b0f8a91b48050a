"""Servers outside a run: for a measurement, a bench or a test."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from engine.config import Config
from engine.errors import RunError
from engine.processes import Child
from engine.rundir import RunDir
from engine.serving.addresses import free_addresses, write_addresses
from engine.serving.commands import server_commands
from engine.serving.probe import server_is_ready

_POLL_S = 0.1


@contextmanager
def served(run: RunDir, config: Config, adapter_root: Path | None = None) -> Iterator[list[str]]:
    """The servers that a configuration starts, for the length of the block, named in the servers.json of `run`.

    Gives the URLs of the policy's, started or named, once all are ready. `adapter_root` as in server_commands. Raises
    RunError with the last words of one that ends, or is not ready in its time; ConfigError as server_commands does."""
    started = free_addresses(config)
    children = [Child(command) for command in server_commands(run, config, started, adapter_root)]
    try:
        for child in children:
            child.start(0)
        begun = time.monotonic()
        for child, address in zip(children, started, strict=True):
            while not server_is_ready(address.url):
                if child.ended() is not None or time.monotonic() > begun + address.start_s:
                    raise RunError(child.last_words(f"{child.name} did not start"))
                time.sleep(_POLL_S)
        yield write_addresses(run, config, started)
    finally:
        for child in children:
            child.stop()
