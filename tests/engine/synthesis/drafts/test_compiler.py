"""engine.synthesis.drafts: a draft becomes a task that can be proved, and each flaw of it is told by name and place."""

import copy

import orjson
import pytest

from engine.synthesis.drafts.draft import read_drafts
from engine.synthesis.drafts.plan import DraftError
from engine.synthesis.planted import guessed, planted
from tests.parts.agenticqwen_plays import NOTHING, rewarded
from tests.parts.drafts import compiled, flips
from tests.parts.places import TESTS

pytestmark = pytest.mark.anyio

PAINT = orjson.loads((TESTS / "data/draft_paint.json").read_bytes())


def changed(change):
    """The draft with one thing changed."""
    value = copy.deepcopy(PAINT)
    change(value)
    return value


async def test_a_draft_becomes_a_task():
    """Gold earns all, doing nothing nothing, and every planted edit flips its own item."""
    task = await compiled(PAINT)
    assert (await rewarded(task, task.meta["gold"])).value == 1
    assert (await rewarded(task, NOTHING)).value == 0
    assert [item.id for item in task.rubric.forbidden] == ["restricted", "other_writes"]
    assert [item.id for item in task.rubric.subgoals] == ["paints", "delivery", "order", "told_1", "told_2"]
    assert [item.id for item in task.rubric.interactions] == ["ask_surface", "ask_litres", "ask_day"]
    for one in planted(task)[:-1]:
        assert await flips(task, one.completions) == one.flips, one.name


async def test_who_guesses_earns_less():
    """All at once, and each fact by itself; whoever takes what is wrong changes what nobody asked to change."""
    task = await compiled(PAINT)
    assert (await rewarded(task, guessed(task))).value == 0
    for fact, script in task.meta["mistaken"].items():
        reward = await rewarded(task, script)
        assert reward.value == 0
        assert {item.id for item in reward.items if item.part == "interaction" and not item.met} == {f"ask_{fact}"}


async def test_what_is_computed_is_in_the_answer_alone():
    """The total is nobody's fact, and the user is told in words."""
    task = await compiled(PAINT)
    assert task.meta["gold"][-1] == "<answer>number of the order: P-318. total: 84.5.</answer>"
    assert "the old iron gate" in task.user.context
    assert task.meta["shape"] == "ask read ask ask read write"
    assert task.meta["guesses"]["litres"] == [[10, 5]]


async def test_the_same_draft_becomes_the_same_task():
    """Byte for byte."""
    assert await compiled(PAINT) == await compiled(copy.deepcopy(PAINT))


def step(value, name):
    """A step of the plan."""
    return next(one for one in value["world"]["plan"] if one.get("id") == name)


def unused(value):
    """The litres are asked for, and change nothing."""
    step(value, "order")["arguments"]["litres"] = 4
    value["instruction"]["rules"] += " An order is always of 4 litres."
    value["world"]["plan"][-1]["answer"].pop("total")


def never_asked(value):
    """A fact that no step asks for."""
    value["world"]["facts"]["colour"] = {**value["world"]["facts"]["day"], "questions": ["Which colour?"]}
    value["instruction"]["background"] += " ${colour}"


def late(value):
    """The day is used before it is asked for."""
    plan = value["world"]["plan"]
    plan.insert(5, plan.pop(3))


def choice(value):
    """The paint is written down instead of chosen."""
    step(value, "order")["arguments"]["paint"] = "rust primer"


def total(value):
    """A number that the rules do not have."""
    step(value, "order")["arguments"]["litres"] = 10


def drawn(value):
    """What the delivery costs is made up."""
    del value["blueprint"]["tools"][1]["effect"]


def no_trap(value):
    """There is no delivery on the wrong day."""
    del value["world"]["state"]["deliveries"]["${day.wrong}"]


def closed(value):
    """There is none on the right day either."""
    value["world"]["state"]["deliveries"]["${day}"]["open"] = False


def tie(value):
    """Two paints are the cheapest."""
    value["world"]["state"]["paints"]["${surface}"][0]["litre"] = 7.25


def missing_member(value):
    """An answer has no such member."""
    value["world"]["plan"][-1]["answer"]["total"] = "${delivery/price}"


def unknown(value):
    """A reference to nothing."""
    value["instruction"]["background"] += " ${colour}"


def told_to_the_agent(value):
    """The instruction says the day."""
    value["instruction"]["instruction"] += " On ${day}."


def untold(value):
    """The user is not told the day."""
    value["instruction"]["background"] = "You paint ${surface}, with ${litres}."


def two_at_once(value):
    """A question asks for two facts."""
    value["world"]["facts"]["litres"]["questions"][7] = "How many litres, and which day?"


def unheard(value):
    """A question that was held out is not understood."""
    value["world"]["facts"]["day"]["questions"][7] = "Any deadline?"


def no_reason(value):
    """The rules do not say what is cited."""
    value["world"]["facts"]["litres"]["because"] = "Always ask how much."


def another_reason(value):
    """The litres do not change that call."""
    value["world"]["facts"]["litres"]["because"] = "get_delivery.day"


def no_answer(value):
    """The plan does not end."""
    value["world"]["plan"].pop()


def after_the_answer(value):
    """A step that is never reached."""
    value["world"]["plan"].append({"id": "again", "call": "list_paints", "arguments": {"surface": "${surface}"}})


def unreachable(value):
    """What is forbidden cannot be done."""
    value["blueprint"]["restriction"]["attempt"] = {"colour": "red"}


def told_twice(value):
    """Two items of the answer are one."""
    value["world"]["plan"][-1]["answer"]["order again"] = "${order/order}"


def no_type(value):
    """A type that there is none of."""
    value["world"]["facts"]["day"]["type"] = "weekday"


def of_another_type(value):
    """The wrong value could never be drawn."""
    value["world"]["facts"]["litres"]["type"] = "integer[6,20]"


def no_function(value):
    """A tool that no model can call."""
    value["blueprint"]["tools"][1]["function"]["name"] = "get delivery"


@pytest.mark.parametrize(
    ("change", "code", "place"),
    [
        (unused, "unused", "fact litres"),
        (never_asked, "unused", "fact colour"),
        (late, "unasked", "step delivery"),
        (choice, "literal", "step order"),
        (total, "literal", "step order"),
        (drawn, "drawn", "step delivery"),
        (no_trap, "mistaken", "fact day"),
        (closed, "refused", "step order"),
        (tie, "expression", "step order"),
        (missing_member, "expression", "the answer"),
        (unknown, "reference", "draft paint-for-the-gate"),
        (told_to_the_agent, "leak", "the instruction"),
        (untold, "background", "the background"),
        (two_at_once, "keywords", "fact litres"),
        (unheard, "keywords", "fact day"),
        (no_reason, "askable", "fact litres"),
        (another_reason, "askable", "fact litres"),
        (no_answer, "answer", "the plan"),
        (after_the_answer, "answer", "step again"),
        (unreachable, "restriction", "the restriction"),
        (told_twice, "flips", "draft paint-for-the-gate"),
        (no_type, "type", "fact day"),
        (of_another_type, "type", "fact litres"),
        (no_function, "schema", "draft paint-for-the-gate"),
    ],
    ids=lambda value: value.__name__ if callable(value) else "",
)
async def test_a_flaw_has_its_code_and_its_place(change, code, place):
    """And a remedy in brackets; without the flaw the same draft is sound (above)."""
    with pytest.raises(DraftError) as raised:
        await compiled(changed(change))
    said = str(raised.value)
    assert (raised.value.code, said.partition(":")[0]) == (code, place), said
    assert said.endswith(")")


def test_a_file_of_drafts(tmp_path):
    """One, many in an array, or one a line."""
    another = {**PAINT, "id": "another"}
    for name, content in (
        ("one.json", orjson.dumps(PAINT)),
        ("many.json", orjson.dumps([PAINT, another])),
        ("lines.jsonl", orjson.dumps(PAINT) + b"\n\n" + orjson.dumps(another)),
    ):
        (tmp_path / name).write_bytes(content)
        ids = [draft.id for draft in read_drafts(tmp_path / name)]
        assert ids == ["paint-for-the-gate", "another"][: len(ids)]
        assert len(ids) == 1 + (name != "one.json")
