"""What a configuration demands of a machine beyond computing: code, commands, addresses, secrets, services.

Nothing is imported, started or sent here: `find` says which file a `package.module:Object` would be loaded from.
"""

from __future__ import annotations

import hashlib
import os
import shlex
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from engine.config.endpoints import SglangSection
from engine.config.plugins import plugins
from engine.config.tree import Config

DemandKind = Literal["code", "command", "address", "secret", "service", "link"]
Find = Callable[[str], Path | None]
_SHIPPED = ("engine.scripted:", "engine.scripted.")
_SERVICES = ("wandb", "trackio")
"""Metrics writers that log in somewhere, or replace what they have of the same run."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Demand:
    """One thing that is asked for."""

    kind: DemandKind
    keys: tuple[str, ...]
    """The configuration's keys that name it; of a link, its path in the run directory."""
    text: str
    """What the question shows, and what is remembered. Whatever came from the run is quoted in it."""
    file: Path | None = None
    """The file that would be executed."""

    @property
    def exact(self) -> str:
        """`text` with the content of the file as it is now, as a digest."""
        if self.file is None or not self.file.is_file():
            return self.text
        with self.file.open("rb") as file:
            return f"{self.text} (sha256 {hashlib.file_digest(file, 'sha256').hexdigest()})"


def demands(config: Config, find: Find) -> Iterator[Demand]:
    """Everything that `config` asks for in its modes; what is shipped is not asked for.

    A plug-in that `find` does not find is left out: it cannot be loaded either."""
    named = plugins(config)
    if config.policy.launch == "scripted":
        named["policy.script"] = config.policy.script
    for key, name in named.items():
        if not name.startswith(_SHIPPED) and (file := find(name)) is not None:
            yield Demand(kind="code", keys=(key,), text=f"{key} = {name!r}, loaded from {str(file)!r}", file=file)
    if config.policy.launch == "sglang":
        yield _command("policy", config.policy, config.model.path)
    if config.policy.launch == "none":
        yield from _addresses("policy.urls", config.policy.urls, "policy.api_key_env", config.policy.api_key_env)
    for name, endpoint in config.endpoints.items():
        table = f"endpoints.{name}"
        if endpoint.launch == "sglang":
            yield _command(table, endpoint, endpoint.model)
        else:
            secret = f"{table}.api_key_env"
            yield from _addresses(f"{table}.url", (endpoint.url,), secret, endpoint.api_key_env)
    for writer in config.metrics.writers:
        if writer in _SERVICES:
            text = f"metrics.writers: {writer!r}, under the account that it is logged in to here"
            yield Demand(kind="service", keys=("metrics.writers",), text=text)


def _addresses(key: str, urls: tuple[str, ...], secret_key: str, variable: str) -> Iterator[Demand]:
    for url in urls:
        yield Demand(kind="address", keys=(key,), text=f"{key}: {url!r}")
        if variable:
            # Bound together: the variable that one server may have is not for another.
            text = f"{secret_key}: the environment variable {variable!r}, sent to {url!r}"
            yield Demand(kind="secret", keys=(secret_key, key), text=text)


def _command(table: str, section: SglangSection, model: str) -> Demand:
    """An SGLang that is started; with flags of its own, for the model that they are for."""
    keys: tuple[str, ...] = (f"{table}.sglang", f"{table}.flags")
    told = f"{table}.sglang = {section.sglang!r}"
    directory = Path(section.sglang) / "bin" / "python"
    found = None if section.sglang == "auto" else directory if directory.exists() else _program(section.sglang)
    if found is not None:
        told += f", started from {str(found.absolute())!r}"
    if section.flags:
        keys, told = (*keys, _model_key(table)), f"{told}, with the flags {section.flags!r} for the model {model!r}"
    return Demand(kind="command", keys=keys, text=told, file=found)


def _model_key(table: str) -> str:
    return "model.path" if table == "policy" else f"{table}.model"


def _program(command: str) -> Path | None:
    """The program that a command starts; None for what cannot be started either."""
    try:
        words = shlex.split(command)
    except ValueError:
        return None
    found = shutil.which(words[0]) if words else None
    return Path(found) if found else None


def links_out(run: Path) -> Iterator[Demand]:
    """Links of a run directory that lead out of it: whoever goes on with the run writes, and deletes, behind them."""
    root = run.resolve()
    for directory, directories, files in os.walk(root):
        for path in (Path(directory, name) for name in (*directories, *files)):
            if path.is_symlink() and not (target := path.resolve()).is_relative_to(root):
                inside = str(path.relative_to(root))
                yield Demand(kind="link", keys=(inside,), text=f"{inside!r} leads out of the run, to {str(target)!r}")
