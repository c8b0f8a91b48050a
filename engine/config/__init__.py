"""The configuration: one TOML file, one typed tree (tree), how it is read and explained (load), objects it
names (plugins)."""

from engine.config.load import (
    ASSETS,
    Loaded,
    api_key,
    asset,
    child_environment,
    dump,
    environment,
    fields,
    load,
    marks,
    refuse_changes,
    text_override,
    value_of,
)
from engine.config.plugins import foreign, load_object
from engine.config.tree import Config

__all__ = [
    "ASSETS",
    "Config",
    "Loaded",
    "api_key",
    "asset",
    "child_environment",
    "dump",
    "environment",
    "fields",
    "foreign",
    "load",
    "load_object",
    "marks",
    "refuse_changes",
    "text_override",
    "value_of",
]
