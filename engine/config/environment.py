"""Environment variables; the only place that reads them."""

from __future__ import annotations

import os

from engine.errors import ConfigError


def environment(name: str) -> str | None:
    """The value of an environment variable."""
    return os.environ.get(name)


def api_key(name: str, key: str) -> str | None:
    """The API key in environment variable `name`, which configuration key `key` names; it is in no file of a run.

    Raises ConfigError if the variable that should hold it is not set."""
    if not name:
        return None
    if not (value := environment(name)):
        raise ConfigError(f"{key}: the environment variable {name} is not set; export the API key in it")
    return value


def child_environment(**extra: str) -> dict[str, str]:
    """The environment of this process for a child, with `extra` on top."""
    return {**os.environ, **extra}
