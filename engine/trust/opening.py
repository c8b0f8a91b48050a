"""How a command opens a run directory that it will execute: what its user has not accepted yet is asked about first."""

from __future__ import annotations

import sys
from collections.abc import Sequence

import click

from engine.config.load import Loaded, load
from engine.config.plugins import module_file
from engine.config.tree import Config
from engine.errors import ConfigError
from engine.rundir.layout import RunDir
from engine.trust.accepted import accepted, list_path, remember
from engine.trust.demands import Demand, demands, links_out

Uses = tuple[str, ...]
"""Beginnings of the keys, and of the paths of links, that a command makes use of."""
SCORED: Uses = ("scorer.kind",)
"""Recorded episodes are scored again."""
REPLAYED: Uses = ("world.kind", "user.kind", "scorer.kind")
"""Recorded episodes are executed again, without network."""
JUDGED: Uses = ("endpoints.", "judge.sqlite")
"""A judge is asked about recorded episodes."""
PLAYED: Uses = (*REPLAYED, "policy.", "endpoints.")
"""New episodes are played, outside the run directory."""
RESUMED: Uses = ("",)
"""The run goes on: everything."""

_ABOUT = {
    "code": "imports and runs",
    "command": "starts",
    "address": "connects to",
    "secret": "sends",
    "service": "writes to",
    "link": "writes behind a link",
}

trust_option = click.option(
    "--trust",
    is_flag=True,
    help="Accept the code, commands, addresses and secrets that a run from elsewhere names (SECURITY.md); remembered.",
)


def open_run(run: RunDir, overrides: Sequence[str], uses: Uses, *, trust: bool) -> Config:
    """The configuration of `run` with `overrides`, once the user accepted what of it the command makes use of.

    What the user gave on the command line, what a run made here began with, and what was accepted before is not asked
    about again. Raises ConfigError, with the remedy, if the user does not accept it, or cannot be asked."""
    loaded = load(run.config, overrides)
    wanted = [demand for demand in (*_foreign(loaded), *links_out(run.path)) if _used(demand, uses)]
    if wanted:
        known = accepted(run.run_id)
        wanted = [demand for demand in wanted if not {demand.text, demand.exact} & known]
    if wanted:
        if not trust:
            _ask(run, wanted)
        remember(run.run_id, (demand.exact for demand in wanted))
    return loaded.config


def register(run: RunDir, config: Config) -> None:
    """A run that is made here: what it names is its user's own, and stays so when the files that it names change."""
    remember(run.run_id, (demand.text for demand in demands(config, module_file)))


def register_given(run: RunDir, loaded: Loaded, config: Config) -> None:
    """A run that goes on as `config`: what the command line gave in `loaded` is its user's own from now on."""
    remember(run.run_id, (demand.text for demand in demands(config, module_file) if _given(loaded, demand)))


def _foreign(loaded: Loaded) -> list[Demand]:
    """What the run names, and not the command line."""
    return [demand for demand in demands(loaded.config, module_file) if not _given(loaded, demand)]


def _given(loaded: Loaded, demand: Demand) -> bool:
    """Whether no part of it is the run's."""
    return not any(map(loaded.in_file, demand.keys))


def _used(demand: Demand, uses: Uses) -> bool:
    return any(key.startswith(uses) for key in demand.keys)


def _ask(run: RunDir, wanted: Sequence[Demand]) -> None:
    """Raises ConfigError if the user does not accept it, or cannot be asked."""
    width = max(len(about) for about in _ABOUT.values())
    lines = [f"  {_ABOUT[demand.kind]:<{width}}  {demand.text}" for demand in wanted]
    told = "\n".join((f"{run.path} was not made here, or was changed since. This command, with it,", *lines))
    looking = "`show`, `audit`, `export` and `attach` need none of this"
    if not (sys.stdin.isatty() and sys.stderr.isatty()):
        raise ConfigError(f"{told}\nPass --trust if you trust whoever made it (SECURITY.md); {looking}")
    click.echo(told, err=True)
    if not click.confirm(f"Do you trust whoever made it? It is remembered in {list_path()}.", err=True):
        raise ConfigError(f"{run.path} is not trusted, and nothing was done; {looking}")
