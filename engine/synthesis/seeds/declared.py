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
_KINDS = {"name": str, "description": str, "parameters": dict, "outputs": dict, "effect": dict}


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
    members = {
        "name": flat["name"],
        "description": flat.get("description") or "",
        "parameters": _first(flat, _PARAMETERS),
        "outputs": _first(flat, _OUTPUTS),
        "effect": flat.get("effect"),
    }
    wrong = [name for name, kind in _KINDS.items() if not isinstance(members[name], kind | None)]
    for name in wrong:
        box.left_out(f"{place}.{name}", f"is no {'text' if _KINDS[name] is str else 'object'}: the tool cannot be used")
    if wrong:
        return
    for name in sorted(flat.keys() - _KNOWN):
        box.left_out(f"tools[].{name}", "is no part of a tool here")
    if members["parameters"] is None:
        box.rewrote(f"{place}.parameters", "it declares none: an object without properties")
        members["parameters"] = {"type": "object", "properties": {}}
    box.add(place, Tool(**members))


def _flat(given: Json) -> dict[str, Any] | None:
    """A declaration without its envelope; None for what is no function."""
    if not isinstance(given, Mapping) or given.get("type", "function") != "function":
        return None
    inner = given.get("function", {})
    if not isinstance(inner, Mapping):
        return None
    flat = {name: value for name, value in (*given.items(), *inner.items()) if name != "function"}
    return flat if flat.get("name") is not None else None


def _first(flat: Mapping[str, Any], names: tuple[str, ...]) -> Any:
    return next((flat[name] for name in names if flat.get(name) is not None), None)
