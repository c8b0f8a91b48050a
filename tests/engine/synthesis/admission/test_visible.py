"""What an agent can see without asking, and what it can draw."""

import random
from typing import Any

from engine.packs.pack import load_pack, parse_task
from engine.synthesis.admission.draws import CallDraws, folded
from engine.synthesis.admission.play import ScriptPlayer
from engine.synthesis.admission.visible import visible_to
from engine.task import Tool
from engine.world.admission import admit
from engine.world.effects import RefusedError
from tests.parts.admission_tasks import DAY, breakfast
from tests.parts.places import ASSETS
from tests.parts.worlds import TEXT, tool


async def read(value: dict[str, Any]) -> list[tuple[str, dict[str, Any]]]:
    """The calls that an agent can make by what it has seen."""
    answers = (await visible_to(ScriptPlayer(parse_task(value)))).answers
    return [(answer.call.name, dict(answer.call.arguments)) for answer in answers]


async def test_what_is_not_seen_is_not_read():
    """A private day opens no list of slots; a tool without arguments is always read."""
    assert await read(breakfast()) == [("opening_hours", {})]


async def test_an_answer_leads_to_the_next_read():
    """A code in a public note names a row, and that row a day."""
    value = breakfast()
    value["world"]["state"]["hours"]["note"] = "see FR-0930"
    value["world"]["state"]["bookings"]["FR-0930"] = {"table": f"until {DAY}", "row": ""}
    assert await read(value) == [
        ("opening_hours", {}), ("get_booking", {"slot": "FR-0930"}), ("list_slots", {"day": DAY}),
    ]  # fmt: skip


async def test_choices_and_indices_are_seen():
    """An enumeration is shown to the agent, and a row of a list has a number."""
    value = breakfast()
    value["tools"] += [
        tool("pick", {"colour": {"type": "string", "enum": ["red", "blue"]}}, effect={"read": "/colours/{colour}"}),
        tool("row", {"number": {"type": "integer"}}, effect={"read": "/rows/{number}/name"}),
        tool("part", {"code": TEXT}, effect={"read": "/parts/P-{code}"}),
    ]
    value["world"]["state"] |= {"colours": {"red": 1, "green": 2}, "rows": [{"name": "a"}, {}], "parts": {"P-9": 1}}
    seen = await read(value)
    assert ("pick", {"colour": "red"}) in seen
    assert ("row", {"number": 0}) in seen
    assert {name for name, _ in seen} == {"opening_hours", "pick", "row"}
    value["rules"] += " Ask for part 9."
    assert ("part", {"code": "9"}) in await read(value)


def test_drawn_calls_are_legal():
    """Nine of ten calls of the showcase's tools are admitted; a pattern may be missed."""
    taken = refused = 0
    for task in load_pack(ASSETS / "packs/showcase.jsonl").tasks:
        draws = CallDraws(task.tools, random.Random(0))
        draws.learn(task.world.state)
        for _ in range(20):
            try:
                admit(task, draws.call())
                taken += 1
            except RefusedError:
                refused += 1
    assert taken > 9 * refused


def test_what_is_hidden_is_never_drawn():
    """Neither from a choice nor from what was learnt, and a number by its text."""
    schema = {
        "day": {"type": "string", "enum": [DAY, "x"]},
        "guests": {"type": "integer", "minimum": 11, "maximum": 13},
    }
    made = Tool(name="t", description="", parameters={"type": "object", "properties": schema, "required": list(schema)})
    draws = CallDraws((made,), random.Random(0), frozenset({folded(DAY), "12"}))
    draws.learn([DAY, 12, {"12": "y"}])
    assert list(draws.known) == ["y"]
    drawn = [draws.call().arguments for _ in range(200)]
    assert {arguments["day"] for arguments in drawn} == {"x"}
    guests = {arguments["guests"] for arguments in drawn}
    assert {11, 13} <= guests <= {11, 13, "something"}, "a refused value where no other is found"


def test_a_schema_that_refers_to_itself_is_drawn():
    """To some depth; also by a choice of forms."""
    node = {"type": "object", "properties": {"next": {"$ref": "#/$defs/node"}, "name": TEXT}, "required": ["next"]}
    parameters = {
        "type": "object",
        "properties": {"node": {"anyOf": [{"$ref": "#/$defs/node"}, {"type": "null"}]}},
        "required": ["node"],
        "$defs": {"node": node},
    }
    draws = CallDraws((Tool(name="t", description="", parameters=parameters),), random.Random(1))
    assert all("node" in draws.call().arguments for _ in range(50))
