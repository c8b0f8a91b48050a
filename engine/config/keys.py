"""How a configuration key is declared: its default, its meaning, and the modes in which it has an effect.

`only_if` names the mode (or modes) in which a key has an effect, `unless` the one in which it has none (setting it
there is an error); `resumable` marks the keys that `--resume` may change. A mode without a dot is a key of the same
table. All are read by engine.config.load.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pydantic import BaseModel, ConfigDict, Field

OBJECT = r"[\w.]+:\w+"
"""Pattern of `package.module:Object`."""


Modes = Mapping[str, str | tuple[str, ...]]
"""Keys and the value, or any of the values, that they must have."""


def key(
    default: Any,
    description: str,
    *,
    only_if: Modes | None = None,
    unless: dict[str, str | int] | None = None,
    resumable: bool = False,
    **bounds: Any,
) -> Any:
    """One configuration key: its default, its meaning, and the marks named in the module docstring."""
    modes = {mode: (one,) if isinstance(one, str) else one for mode, one in (only_if or {}).items()}
    marks: dict[str, Any] = {"only_if": modes, "unless": unless or {}, "resumable": resumable}
    return Field(default, description=description, json_schema_extra=marks, validate_default=True, **bounds)


class Section(BaseModel):
    """A table of the TOML file."""

    model_config = ConfigDict(extra="forbid", frozen=True)
