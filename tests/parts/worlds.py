"""What the tests of worlds, rubrics and packs share: a small task, a shop with reads, writes and drawn values, and the
reward of scripted completions."""

from collections.abc import Mapping
from typing import Any

import orjson
import pytest

from engine.core.seams import ScoringRecord
from engine.packs.pack import parse_task
from engine.reward.rubric import RubricScorer
from engine.task import Task, Tool
from engine.types import Event, EventKind, Json, Reward, StopReason, ToolCall
from engine.world import admission, effects, offline_user, tools


def tool(name: str, properties: dict[str, Any], **more: Any) -> dict[str, Any]:
    """A tool in the shape of a pack; every property is required, others are refused."""
    parameters = {
        "type": "object",
        "properties": properties,
        "required": [key for key, schema in properties.items() if "default" not in schema],
        "additionalProperties": False,
    }
    function = {"name": name, "description": f"{name}.", "parameters": parameters}
    return {"type": "function", "function": function, **more}


def outputs(**properties: Any) -> dict[str, Any]:
    """An outputs schema."""
    return {"type": "object", "properties": properties}


TEXT = {"type": "string"}
NUMBER = {"type": "integer", "minimum": 1, "maximum": 50}


def task_json(**changes: Any) -> dict[str, Any]:
    """The task as a pack holds it, with some fields replaced."""
    value: dict[str, Any] = {
        "id": "shop-1",
        "instruction": "Order some apples for me.",
        "rules": "Never use rush_order: it costs extra.",
        "tools": [
            tool(
                "get_order", {"id": TEXT}, outputs=outputs(item=TEXT, quantity=NUMBER), effect={"read": "/orders/{id}"}
            ),
            tool(
                "place_order",
                {
                    "item": {"type": "string", "enum": ["apple", "pear"]},
                    "quantity": NUMBER,
                    "gift": {"type": "boolean", "default": False},
                },
                outputs=outputs(code=TEXT),
                effect={
                    "write": "/orders/new",
                    "value": {"item": "{item}", "quantity": "{quantity}", "note": "{quantity} of {item}", "code": "47"},
                    "requires": {"/catalogue/item": "{item}"},
                },
            ),
            tool("rush_order", {"item": TEXT}, effect={"write": True}),
            tool("shop_hours", {"day": TEXT}, outputs=outputs(opens=NUMBER, open={"type": "boolean"}, label=TEXT)),
            tool("list_orders", {}, effect={"read": "/orders"}),
        ],
        "user": {
            "context": "Wants five apples.",
            "facts": {
                "item": {"value": "apple", "keywords": ["item", "fruit"]},
                "quantity": {"value": 5, "keywords": ["quantity", "how many"]},
                "due_date": {"value": "Friday", "keywords": ["date", "when"]},
            },
        },
        "world": {"state": {"catalogue": {"item": "apple"}, "orders": {"old": {"item": "pear", "quantity": 2}}}},
        "rubric": {
            "forbidden": [{"id": "rushed", "text": "", "check": {"called": {"tool": "rush_order"}}}],
            "subgoals": [
                {"id": "ordered", "text": "", "check": {"called": {"tool": "place_order", "ok": True}}},
                {"id": "told", "text": "", "check": {"answered": {"matches": "47"}}},
            ],
            "interactions": [{"id": "asked", "text": "", "check": {"revealed": "quantity"}}],
        },
    }
    return value | changes


def shop(**changes: Any) -> Task:
    """The validated task."""
    return parse_task(task_json(**changes))


def call(name: str, **arguments: Json) -> ToolCall:
    """A tool call."""
    return ToolCall(name=name, arguments=arguments)


def counted_writes(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The tools whose declared write is applied to a state from now on, in order."""
    tools: list[str] = []
    write = effects.write

    def counted(tool: Tool, state: Json, arguments: Mapping[str, Any]) -> effects.Written:
        tools.append(tool.name)
        return write(tool, state, arguments)

    monkeypatch.setattr(effects, "write", counted)
    return tools


ORDER = call("place_order", item="apple", quantity=5)


def _events(task: Task, completions: list[str]) -> list[Event]:
    """What `completions` do in the task's offline world."""
    assert task.user is not None
    state, events = task.world.state, []
    for number, completion in enumerate(completions):
        tag, text = completion.removeprefix("<").split(">", 1)
        text = text.removesuffix(f"</{tag}>")
        if tag == "question":
            revealed = offline_user.offline_reply(task.user, text).revealed
            event = Event(number=number, turn=number, kind=EventKind.SAID, text=text, revealed=revealed)
        elif tag == "answer":
            event = Event(number=number, turn=number, kind=EventKind.ANSWERED, text=text)
        else:
            asked = ToolCall(**orjson.loads(text))
            applied = tools.apply(task, state, asked)
            state = applied.state
            event = Event(
                number=number,
                turn=number,
                kind=EventKind.CALLED,
                text=admission.content(applied.answer),
                tool=asked.name,
                arguments=asked.arguments,
                ok=applied.ok,
            )
        events.append(event)
    return events


async def reward_of(task: Task, completions: list[str]) -> Reward:
    """The rubric's reward of a scripted trajectory."""
    events = _events(task, completions)
    record = ScoringRecord(task=task, messages=(), events=events, final_state=None, stop=StopReason.ANSWER)
    return await RubricScorer().score(record)
