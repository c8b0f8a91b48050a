"""Whether two calls of a tool can mean the same: words may differ; numbers, codes and choices may not."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

from engine.schema.canonical import canonical_bytes, same
from engine.task import Tool
from engine.types import Json

_EXACT = {"enum", "const", "pattern", "format"}
"""Keywords of parameters that are no free text."""
_WORD = re.compile(r"\w+")


def may_mean_the_same(mine: Json, theirs: Json, declared: Mapping[str, Any]) -> bool:
    """Whether two values of a parameter can: words can; numbers, truth values, choices, and texts whose digits differ
    cannot."""
    if same(mine, theirs):
        return True
    return _words(mine, declared) and _words(theirs, declared) and _digits(mine) == _digits(theirs)


def differing(tool: Tool, mine: Mapping[str, Any], theirs: Mapping[str, Any]) -> str | None:
    """The first argument because of which two calls of a tool cannot mean the same; None if they can."""
    for name in sorted(mine.keys() | theirs.keys()):
        if not may_mean_the_same(mine.get(name), theirs.get(name), _declared(tool, name)):
            return name
    return None


def kind_of_call(tool: Tool, arguments: Mapping[str, Any]) -> bytes:
    """The same bytes for all calls of a tool that can mean the same."""
    return canonical_bytes(
        {
            name: {"digits": _digits(value)} if _words(value, _declared(tool, name)) else {"value": value}
            for name, value in arguments.items()
            if value is not None
        }
    )


def likeness(mine: Mapping[str, Any], theirs: Mapping[str, Any]) -> float:
    """How many of the words in the arguments of two calls are in both: 1 for all, 0 for none."""
    left, right = (set(_spoken(arguments)) for arguments in (mine, theirs))
    return len(left & right) / len(left | right) if left | right else 1.0


def _declared(tool: Tool, name: str) -> Mapping[str, Any]:
    declared = tool.parameters.get("properties", {}).get(name, {})
    return declared if isinstance(declared, Mapping) else {}


def _words(value: Json, declared: Mapping[str, Any]) -> bool:
    return isinstance(value, str) and not _EXACT & declared.keys()


def _digits(text: str) -> str:
    return "".join(filter(str.isdigit, text))


def _spoken(arguments: Mapping[str, Any]) -> Iterator[str]:
    for value in arguments.values():
        if isinstance(value, str):
            yield from _WORD.findall(value.casefold())
