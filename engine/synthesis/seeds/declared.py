"""Tools declared as JSON: OpenAI functions, or what an MCP server answers to `tools/list`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from engine.importing.format import UnreadableError
from engine.packs.problems import Found
from engine.synthesis.seeds.toolbox import Toolbox
from engine.task import Tool
from engine.types import Json

_PARAMETERS = ("parameters", "inputSchema", "input_schema")
_OUTPUTS = ("outputs", "outputSchema")
_KNOWN = frozenset({"type", "name", "description", "effect", *_PARAMETERS, *_OUTPUTS})
_NO_ARGUMENTS: Mapping[str, Any] = {"type": "object", "properties": {}}


def declared(value: Json) -> list[Json] | None:
    """The list of tools in a JSON value: the value itself, its `tools`, or those of the result of a JSON-RPC reply.

    Returns None where it has none. Raises UnreadableError for the reply of a server that failed."""
    if isinstance(value, list):
        return value
    if not isinstance(value, Mapping):
        return None
    error = value.get("error")
    if "jsonrpc" in value and isinstance(error, Mapping):
        found = Found("error", f"the server failed: {error.get('message')!r}", "ask it for tools/list again")
        raise UnreadableError([found])
    inner = value.get("result", value)
    tools = inner.get("tools") if isinstance(inner, Mapping) else None
    return tools if isinstance(tools, list) else None


def tools_of_declarations(value: Json, tools: list[Json]) -> tuple[str, Toolbox]:
    """The form of a list of declared tools in words, and the tools; `value` is what the list was found in."""
    box = Toolbox()
    mcp = any(isinstance(tool, Mapping) and "inputSchema" in tool for tool in tools)
    for index, tool in enumerate(tools):
        _add(box, f"tools[{index}]", tool)
    reply = value.get("result", value) if isinstance(value, Mapping) else {}
    if isinstance(reply, Mapping) and reply.get("nextCursor"):
        box.left_out("nextCursor", "the list goes on: ask with this cursor too, and put all tools into one list")
    return ("MCP tools/list" if mcp else "OpenAI functions"), box


def _add(box: Toolbox, place: str, given: Json) -> None:
    flat = _flat(given)
    if flat is None:
        kind = given.get("type") if isinstance(given, Mapping) else type(given).__name__
        box.left_out(place, f"is no function ({kind!r}): give an object with name, description and parameters")
        return
    parameters, outputs = (_first(flat, names) for names in (_PARAMETERS, _OUTPUTS))
    effect, description = flat.get("effect"), flat.get("description") or ""
    wrong = [
        name
        for name, value, kind in (
            *(("name", flat["name"], str), ("description", description, str)),
            *(
                ("parameters", parameters or {}, Mapping),
                ("outputs", outputs or {}, Mapping),
                ("effect", effect or {}, Mapping),
            ),
        )
        if not isinstance(value, kind)
    ]
    for name in wrong:
        box.left_out(f"{place}.{name}", "is no text" if name in ("name", "description") else "is no object")
    if wrong:
        return
    for name in sorted(flat.keys() - _KNOWN):
        box.left_out(f"tools[].{name}", "is no part of a tool here")
    if parameters is None:
        box.rewrote(f"{place}.parameters", "it declares none: an object without properties")
    box.add(
        place,
        Tool(
            name=flat["name"],
            description=description,
            parameters=_NO_ARGUMENTS if parameters is None else parameters,
            outputs=outputs,
            effect=effect,
        ),
    )


def _flat(given: Json) -> dict[str, Any] | None:
    """A declaration without its envelope; None for what is no function."""
    if not isinstance(given, Mapping) or given.get("type", "function") != "function":
        return None
    inner = given.get("function", {})
    if not isinstance(inner, Mapping):
        return None
    flat = {name: value for name, value in (*given.items(), *inner.items()) if name != "function"}
    return flat if "name" in flat else None


def _first(flat: Mapping[str, Any], names: tuple[str, ...]) -> Any:
    return next((flat[name] for name in names if flat.get(name) is not None), None)
