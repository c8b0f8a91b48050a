"""What a declared effect does to the state of a world: pointers and templates filled with the arguments of a call.

A placeholder ``{name}`` that is the whole string keeps the argument's type; inside a longer string it is formatted. An
argument that was not given is null (the empty text inside a longer string). Names in a template are strings always.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from engine.schema import pointer
from engine.schema.canonical import same
from engine.schema.templates import fill_template, placeholders_in, value_text
from engine.task import Tool
from engine.types import Json

TEMPLATE_PLACEHOLDER = re.compile(r"\{([^{}]*)\}")

NOT_FOUND = "not found"
NOT_POSSIBLE = "not possible"


class RefusedError(Exception):
    """The world refuses the call: an in-world error that changes nothing; its text is all that the agent learns."""


class Written(NamedTuple):
    """A state after a write, and the value that was written."""

    state: Json
    value: Json


def read(tool: Tool, state: Json, arguments: Mapping[str, Any]) -> Json:
    """The value that a declared read effect gives.

    Raises RefusedError where the pointer leads nowhere."""
    assert tool.effect is not None
    try:
        return pointer.read_pointer(state, _tokens(tool.effect["read"], arguments))
    except pointer.MissingError:
        raise RefusedError(NOT_FOUND) from None


def write(tool: Tool, state: Json, arguments: Mapping[str, Any]) -> Written:
    """The state after a declared write effect; ``{write: true}`` leaves it as it is.

    Raises RefusedError where a requirement is not met or the parent of the pointer is absent."""
    effect = tool.effect
    assert effect is not None
    target = effect["write"]
    if target is True:
        return Written(state, None)
    for where, template in effect.get("requires", {}).items():
        try:
            found = pointer.read_pointer(state, _tokens(where, arguments))
        except (pointer.MissingError, RefusedError):
            raise RefusedError(NOT_POSSIBLE) from None
        if not same(found, fill(template, arguments)):
            raise RefusedError(NOT_POSSIBLE)
    value = fill(effect["value"], arguments)
    try:
        return Written(pointer.write_pointer(state, _tokens(target, arguments), value), value)
    except pointer.MissingError:
        raise RefusedError(NOT_FOUND) from None


def fill(template: Json, arguments: Mapping[str, Any]) -> Json:
    """A template with its placeholders replaced."""
    return fill_template(template, TEMPLATE_PLACEHOLDER, arguments.get)


def template_placeholders(template: Json) -> Iterator[str]:
    """The names of all placeholders in a template."""
    return placeholders_in(template, TEMPLATE_PLACEHOLDER)


def _tokens(template: str, arguments: Mapping[str, Any]) -> list[str]:
    """Pointer tokens with their placeholders filled; an argument that names nothing leads nowhere."""
    tokens = []
    for token in pointer.parse_pointer(template):
        value = fill(token, arguments)
        if value is None or isinstance(value, Mapping | list):
            raise RefusedError(NOT_FOUND)
        tokens.append(value_text(value))
    return tokens
