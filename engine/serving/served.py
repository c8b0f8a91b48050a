"""Servers outside a run: for a measurement, a bench or a test."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import orjson

from engine.config.tree import Config
from engine.errors import ConfigError, RunError
from engine.processes.child import Child
from engine.rundir.layout import RunDir, new_run_id, write_json
from engine.serving.addresses import free_addresses, write_addresses
from engine.serving.commands import server_commands
from engine.serving.models import find_models
from engine.serving.probe import server_is_ready

READY_S = 30.0
"""Until servers that are said to run answer."""
_POLL_S = 0.1


def fitting_config(config: Config, adapter: Path | None) -> Config:
    """The configuration with its models found, and the adapter's LoRA rank, for which our own server makes room.

    Raises ConfigError for a model that is not there, and a directory that holds no adapter."""
    config = find_models(config).into(config)
    if adapter is None:
        return config
    try:
        rank = orjson.loads((adapter / "adapter_config.json").read_bytes())["r"]
    except (FileNotFoundError, orjson.JSONDecodeError, KeyError, TypeError) as error:
        raise ConfigError(f"{adapter} is no adapter directory: adapter_config.json gives no rank") from error
    return config.model_copy(update={"learner": config.learner.model_copy(update={"rank": rank})})


@contextmanager
def served_apart(what: str, config: Config, adapter: Path | None) -> Iterator[RunDir]:
    """A run directory that lives only as long as the block, and all servers of a `fitting_config`; see `served`.

    `what` is done there, and begins the names that adapters get on the servers."""
    with tempfile.TemporaryDirectory(prefix=f"synth-{what}-") as scratch:
        run = RunDir(Path(scratch))
        write_json(run.manifest, {"run_id": new_run_id(what)})
        # An embedded server loads from below its adapter root only: here that is the adapter's own place.
        with served(run, config, adapter.parent if adapter else run.path):
            yield run


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
