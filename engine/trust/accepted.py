"""The list of what the user of this machine accepted for each run: trusted-runs.json in the user's state directory.

An entry binds the run's id and, word by word, everything that its configuration asked for, so that whoever changes one
of them in run.toml, or sends another run under a known id, is asked about again. Where the run directory lies is not
part of it: a run may be moved.
"""

from __future__ import annotations

import fcntl
import os
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import click
import orjson

from engine.config.environment import environment
from engine.errors import ConfigError, RunError
from engine.rundir.layout import write_atomic

ACCEPTED_FORMAT = 1


def list_path() -> Path:
    """Where the list lies: below $XDG_STATE_HOME, which counts only if it is absolute, else below ~/.local/state."""
    base = Path(environment("XDG_STATE_HOME") or "")
    return (base if base.is_absolute() else Path.home() / ".local" / "state") / "synth-engine" / "trusted-runs.json"


def accepted(run_id: str) -> frozenset[str]:
    """What was accepted for a run, as the texts of its demands.

    Raises ConfigError for a list of another version of this program."""
    path = list_path()
    try:
        try:
            runs = _read(path)
        except ValueError:
            with _locked(path):
                runs = _mended(path)
    except OSError as error:
        _notice(f"{path} cannot be read ({error.strerror}): no run counts as known")
        return frozenset()
    return frozenset(runs.get(run_id, ()))


def remember(run_id: str, texts: Iterable[str]) -> None:
    """Add to what was accepted for a run; a list that cannot be written is a notice, for the run itself can go on.

    Raises ConfigError for a list of another version of this program."""
    wanted = frozenset(texts)
    if not wanted:
        return
    path = list_path()
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        with _locked(path):
            runs = _mended(path)
            known = frozenset(runs.get(run_id, ()))
            if not wanted <= known:
                runs[run_id] = sorted(known | wanted)
                content = orjson.dumps({"format": ACCEPTED_FORMAT, "runs": runs}, option=orjson.OPT_INDENT_2)
                write_atomic(path, content, mode=0o600)
    except (OSError, RunError) as error:
        _notice(f"what was accepted for {run_id} is not remembered, and asked again next time: {error}")


def _mended(path: Path) -> dict[str, list[str]]:
    """The list by run id, read under its lock: a damaged one is set aside. Raises as `_read` does otherwise."""
    try:
        return _read(path)
    except ValueError:
        aside = path.with_name(f"{path.name}.damaged-{time.strftime('%Y%m%dT%H%M%S')}")
        path.replace(aside)
        _notice(f"{path} is damaged: it is set aside as {aside.name}, and no run counts as known")
        return {}


def _read(path: Path) -> dict[str, list[str]]:
    """The list by run id.

    Raises ValueError for a damaged one, ConfigError for another format, OSError for one that cannot be read."""
    try:
        value = orjson.loads(path.read_bytes())
    except FileNotFoundError:
        return {}
    if isinstance(value, dict) and isinstance(value.get("format"), int) and value["format"] != ACCEPTED_FORMAT:
        raise ConfigError(
            f"{path}: format {value['format']} is not {ACCEPTED_FORMAT}: another version of synth-engine wrote it; use "
            "that one, or remove the file, and be asked again"
        )
    return _runs(value)


def _runs(value: Any) -> dict[str, list[str]]:
    """Raises ValueError for what no version has written."""
    if (
        not isinstance(value, dict)
        or value.get("format") is not ACCEPTED_FORMAT
        or not isinstance(value.get("runs"), dict)
    ):
        raise ValueError("no list of runs")
    for texts in value["runs"].values():
        if not isinstance(texts, list) or not all(isinstance(text, str) for text in texts):
            raise ValueError("no list of what was accepted")
    return dict(value["runs"])


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    """One process at a time changes the list."""
    flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW
    with os.fdopen(os.open(path.with_suffix(".lock"), flags, 0o600)) as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _notice(sentence: str) -> None:
    click.secho(f"note: {sentence}", fg="yellow", err=True)
