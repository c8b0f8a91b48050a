"""JSON with placeholders in its texts, names of members included: what effects and drafts are written in."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping

from engine.schema.canonical import compact
from engine.types import Json

_OPENING = "{"
"""In every placeholder; most texts have none."""


def fill_template(
    template: Json, placeholder: re.Pattern[str], value_of: Callable[[str], Json], *, null: str = ""
) -> Json:
    """A template with its placeholders replaced by the values of their names, the pattern's one group.

    A text that is one placeholder keeps the type; inside a longer text a value is formatted, nothing as `null`."""
    if isinstance(template, str):
        whole = placeholder.fullmatch(template) if _OPENING in template else None
        return value_of(whole[1]) if whole else fill_text(template, placeholder, value_of, null=null)
    if isinstance(template, Mapping):
        return {
            fill_text(name, placeholder, value_of, null=null): fill_template(inner, placeholder, value_of, null=null)
            for name, inner in template.items()
        }
    if isinstance(template, list | tuple):
        return [fill_template(inner, placeholder, value_of, null=null) for inner in template]
    return template


def fill_text(template: str, placeholder: re.Pattern[str], value_of: Callable[[str], Json], *, null: str = "") -> str:
    """A text with its placeholders replaced by the texts of their values."""
    if _OPENING not in template:
        return template
    return placeholder.sub(lambda found: value_text(value_of(found[1]), null=null), template)


def value_text(value: Json, *, null: str = "") -> str:
    """A value inside a text."""
    if value is None:
        return null
    return value if isinstance(value, str) else compact(value)


def placeholders_in(template: Json, placeholder: re.Pattern[str]) -> Iterator[str]:
    """The names of all placeholders in a template."""
    if isinstance(template, str):
        yield from placeholder.findall(template)
    elif isinstance(template, Mapping):
        for name, inner in template.items():
            yield from placeholder.findall(name)
            yield from placeholders_in(inner, placeholder)
    elif isinstance(template, list | tuple):
        for inner in template:
            yield from placeholders_in(inner, placeholder)
