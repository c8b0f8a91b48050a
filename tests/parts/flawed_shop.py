"""The shop's task with one thing edited, and what `pack check` then says of it without playing it."""

from collections.abc import Callable
from typing import Any

from engine.packs.flaws import task_flaws
from engine.packs.pack import parse_task
from engine.types import Json
from tests.parts.worlds import outputs, task_json, tool

NOWHERE = "leads nowhere: neither the state nor a write has "
"""How a pointer that finds nothing is told; what it looked for follows."""
Edit = Callable[[dict[str, Any]], Any]

GET, PLACE, RUSH, HOURS, LIST = range(5)
"""The shop's tools by their place."""


def flaws(*edits: Edit) -> list[str]:
    """`field: reason` of every flaw of the shop's task after some edits."""
    value = task_json()
    for edit in edits:
        edit(value)
    return [f"{found.field}: {found.reason}" for found in task_flaws(parse_task(value))]


def one_flaw(field: str, reason: str, *edits: Edit) -> None:
    """The edits make this flaw and no other."""
    found = flaws(*edits)
    assert len(found) == 1, found
    assert found[0].startswith(f"{field}: "), found
    assert reason in found[0], found


def item(check: Json, part: str = "subgoals", name: str = "more") -> Edit:
    """One more item of the rubric."""
    return lambda task: task["rubric"][part].append({"id": name, "text": "", "check": check})


def called(name: str, ok: bool | None = True, **arguments: Json) -> dict[str, Any]:
    """A check of a call with these arguments."""
    schema = {"properties": {key: {"const": value} for key, value in arguments.items()}, "required": list(arguments)}
    return {"called": {"tool": name, "arguments": schema} | ({} if ok is None else {"ok": ok})}


def held(name: str, arguments: Json, ok: bool | None = True) -> dict[str, Any]:
    """A check of a call whose arguments fit a schema."""
    return {"called": {"tool": name, "arguments": arguments} | ({} if ok is None else {"ok": ok})}


def effect(index: int, value: Json) -> Edit:
    """Another effect of a tool."""
    return lambda task: task["tools"][index].update(effect=value)


def state(**more: Json) -> Edit:
    """More of the world's state."""
    return lambda task: task["world"]["state"].update(more)


def more_tool(name: str, properties: dict[str, Any], **parts: Any) -> Edit:
    """One more tool, the sixth."""
    return lambda task: task["tools"].append(tool(name, properties, **parts))


def gives(index: int, **properties: Any) -> Edit:
    """Other outputs of a tool."""
    return lambda task: task["tools"][index].update(outputs=outputs(**properties))


def wrote(where: str, value: Json = "{item}", **requires: Json) -> dict[str, Any]:
    """An effect of rush_order."""
    return {"write": where, "value": value} | ({"requires": requires} if requires else {})
