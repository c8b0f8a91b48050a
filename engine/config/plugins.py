"""`package.module:Object` in the configuration: how a researcher's own world, user, scorer or advantage is found."""

from __future__ import annotations

import importlib
from typing import Any

from engine.errors import ConfigError


def load_object(name: str, key: str) -> Any:
    """The object that `name` ("package.module:Object") names in configuration key `key`.

    Raises ConfigError if the module cannot be imported or has no such object."""
    module_name, _, attribute = name.partition(":")
    try:
        module = importlib.import_module(module_name)
    except ImportError as error:
        raise ConfigError(f"{key} = {name!r}: cannot import it ({error}); is it installed here?") from error
    try:
        return vars(module)[attribute]
    except KeyError:
        raise ConfigError(f"{key} = {name!r}: module {module_name!r} has no {attribute!r}") from None
