"""engine.packs.flaws: what a task rewards other than is meant, each by a small edit of a task that is sound."""

import itertools
from collections.abc import Callable, Sequence
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.packs.flaws import task_flaws
from engine.packs.pack import load_pack, parse_task
from engine.packs.reach import Reach
from engine.schema.validate import member_defect
from engine.synthesis.errands import ERRANDS_SEED, make_errand
from engine.synthesis.tiny_family import TINY_SEED, make_tiny_task
from engine.task import Rubric, Split, Task, Tool, WorldSpec
from engine.types import Json, ToolCall
from engine.world.tools import apply
from tests.parts.agenticqwen_plays import DECIDED, IMPORTED
from tests.parts.places import ASSETS, ROOT
from tests.parts.worlds import NUMBER, TEXT, outputs, shop, task_json, tool

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


# --- sound tasks ----------------------------------------------------------------------------------------------------


def test_the_shop_has_none():
    """All of the edits below begin there."""
    assert flaws() == []


def shipped() -> Sequence[Task]:
    """All tasks of showcase and of the example pack, fifty each of the families, from all of their splits."""
    made = [make_tiny_task(TINY_SEED, *draw) for draw in itertools.product(Split, range(17))]
    made += [make_errand(ERRANDS_SEED, *draw) for draw in itertools.product(Split, range(17))]
    hand_written = (ASSETS / "packs/showcase.jsonl", ROOT / "docs/examples/library.jsonl")
    return [*made, *(task for path in hand_written for task in load_pack(path).tasks)]


def test_shipped_and_imported_tasks_have_none():
    """Whoever checks a pack of ours is told nothing, and so not the wrong thing."""
    tasks = [*shipped(), *IMPORTED.tasks, *DECIDED.tasks]
    assert len(tasks) > 140
    assert {task.id: [str(found) for found in task_flaws(task)] for task in tasks if list(task_flaws(task))} == {}


# --- calls that no tool admits --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("check", "place", "reason"),
    [
        (called("place_order", quantity="five"), "", 'quantity = "five": expected integer'),
        (called("place_order", quantity=80), "", "quantity = 80: maximum 50"),
        (called("place_order", ok=None, item="plum"), "", 'item = "plum": expected one of ["apple","pear"]'),
        (held("place_order", {"properties": {"item": {"enum": ["plum", "fig"]}}}), "", 'item = "plum"'),
        (called("get_order", order="old"), "", "an argument 'order'"),
        (held("get_order", {"required": ["order"]}), "", "an argument 'order'"),
        (held("get_order", {"allOf": [{"properties": {"id": {"const": 7}}}]}), "", "id = 7: expected string"),
        (
            held("place_order", {"anyOf": [{"properties": {"gift": {"const": "yes"}}}, {"required": ["wrap"]}]}),
            "",
            'gift = "yes": expected boolean',
        ),
        (
            {"all": [{"revealed": "item"}, {"before": [{"revealed": "item"}, called("get_order", id=7)]}]},
            ".all[1].before[1]",
            "id = 7: expected string",
        ),
    ],
)
def test_a_call_that_no_tool_admits(check: Json, place: str, reason: str):
    """Constants of another type, out of bounds, of no choice, of no parameter: wherever the `called` stands."""
    name = "get_order" if "get_order" in str(check) else "place_order"
    field = f"rubric.subgoals[2].check{place}.called.arguments"
    one_flaw(field, f"no call that {name} admits has {reason}", item(check))


def test_a_forbidden_call_that_no_tool_admits():
    """It can be met by no success; an attempt that the world refuses may be what is meant."""
    field = "rubric.forbidden[1].check.called.arguments"
    one_flaw(field, "quantity = 80", item(called("place_order", quantity=80), "forbidden"))
    assert flaws(item(called("place_order", ok=None, quantity=80), "forbidden")) == []


@pytest.mark.parametrize(
    "check",
    [
        called("place_order", ok=False, quantity=80),
        held("place_order", {"properties": {"item": {"enum": ["plum", "pear"]}}}, ok=None),
        held("place_order", {"anyOf": [{"required": ["wrap"]}, {"properties": {"quantity": {"const": 3}}}]}),
        held("place_order", {"not": {"properties": {"quantity": {"const": 80}}}}),
        {"all": [called("place_order"), {"not": called("place_order", ok=None, quantity=80)}]},
        called("place_order", quantity=5.0, gift=False),
    ],
)
def test_a_call_that_a_tool_may_admit(check: Json):
    """One of several choices, a refusal that is meant, what must not be: nothing is said of these."""
    assert flaws(item(check)) == []


def test_a_nested_constant_is_held_to_its_own_schema():
    """Members of an argument that is an object."""
    place = {"type": "object", "properties": {"floor": {"type": "integer"}}, "additionalProperties": False}
    nested = [more_tool("move", {"to": place}, effect={"write": True})]
    one_flaw(
        "rubric.subgoals[2].check.called.arguments",
        'floor = "2": expected integer',
        *nested,
        item(held("move", {"properties": {"to": {"properties": {"floor": {"const": "2"}}}}})),
    )
    assert flaws(*nested, item(called("move", to={"floor": 2}))) == []


@pytest.mark.parametrize(
    ("schema", "value", "defect"),
    [
        ({"properties": {"a": TEXT}, "required": ["b"], "additionalProperties": False}, "x", None),
        ({"properties": {"a": TEXT}, "minProperties": 2}, "x", None),
        ({"properties": {"a": TEXT}}, 1, "expected string"),
        ({"additionalProperties": False}, 1, "unexpected"),
        ({"properties": {"a": {"$ref": "#/$defs/n"}}, "$defs": {"n": {"type": "integer"}}}, "x", "expected integer"),
        ({"properties": {"a": {"$ref": "#/allOf/0"}}, "allOf": [{"type": "integer"}]}, "x", None),
    ],
)
def test_a_member_is_judged_alone(schema: dict[str, Any], value: Json, defect: str | None):
    """By all that the object's schema says of it, and by nothing that it says of the others."""
    found = member_defect(schema, "a", value)
    assert (found and found.reason) == defect


# --- names in two spellings -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("edit", "field", "name"),
    [
        (lambda v: v["tools"][RUSH]["function"]["parameters"].update(required=["itm"]), "tools[2].parameters", "itm"),
        (lambda v: v["tools"][GET]["outputs"].update(required=["qty"]), "tools[0].outputs", "qty"),
        (
            more_tool("move", {"to": {"type": "object", "properties": {"floor": TEXT}, "required": ["flor"]}}),
            "tools[5].parameters.properties.to",
            "flor",
        ),
        (
            more_tool("log", {}, outputs=outputs(lines={"items": {"properties": {"at": TEXT}, "required": ["on"]}})),
            "tools[5].outputs.properties.lines.items",
            "on",
        ),
    ],
)
def test_a_required_name_that_is_not_declared(edit: Edit, field: str, name: str):
    """In parameters and outputs, at every depth."""
    one_flaw(f"{field}.required", f"requires {name!r}, which is none of the properties", edit)


def test_a_required_name_may_be_declared_elsewhere():
    """By a schema that is combined, or by one of any properties."""
    combined = {"type": "object", "allOf": [{"properties": {"a": TEXT}}], "properties": {}, "required": ["a"]}
    free = {"type": "object", "properties": {}, "additionalProperties": TEXT, "required": ["a"]}
    assert flaws(more_tool("x", {"one": combined, "other": free, "bare": {"required": ["a"]}})) == []


# --- effects that lead nowhere --------------------------------------------------------------------------------------

NOWHERE = "leads nowhere: neither the state nor a write has "


def wrote(where: str, value: Json = "{item}", **requires: Json) -> dict[str, Any]:
    """An effect of rush_order."""
    return {"write": where, "value": value} | ({"requires": requires} if requires else {})


@pytest.mark.parametrize(
    ("edit", "field", "reason"),
    [
        (effect(GET, {"read": "/order/{id}"}), "tools[0].effect.read", f"{NOWHERE}/order"),
        (effect(GET, {"read": "/orders/{id}/lines"}), "tools[0].effect.read", f"{NOWHERE}/orders/{{id}}/lines"),
        (effect(GET, {"read": "/catalogue/item/{id}"}), "tools[0].effect.read", "holds no members at /catalogue/item"),
        (effect(RUSH, wrote("/carts/{item}")), "tools[2].effect.write", f"{NOWHERE}/carts"),
        (effect(RUSH, wrote("/catalogue/item/x")), "tools[2].effect.write", "holds no members at /catalogue/item"),
        (
            effect(RUSH, wrote("/orders/{item}/quantity/x")),
            "tools[2].effect.write",
            "holds no members at /orders/{item}/quantity",
        ),
        (effect(RUSH, wrote("/a~1b/{item}/c")), "tools[2].effect.write", f"{NOWHERE}/a~1b"),
        (effect(RUSH, wrote("/x", **{"/catalog/item": "apple"})), "tools[2].effect.requires./catalog/item", NOWHERE),
        (
            effect(RUSH, wrote("/x", **{"/catalogue/item": "plum"})),
            "tools[2].effect.requires./catalogue/item",
            'is never "plum", but "apple"',
        ),
        (
            effect(RUSH, wrote("/x", **{"/orders/{item}/quantity": 3})),
            "tools[2].effect.requires./orders/{item}/quantity",
            "is never 3, but 2",
        ),
    ],
)
def test_an_effect_that_leads_nowhere(edit: Edit, field: str, reason: str):
    """A name that neither state nor write has, a pointer into a text or a number, a value that is never there."""
    # The shop's own write could give an order any quantity.
    one_flaw(field, f": {reason}", effect(PLACE, {"write": True}), edit)


def test_a_list_takes_an_element_that_it_has_and_one_more():
    """`-` appends; a number beyond the end is no place."""
    assert flaws(state(log=[1]), effect(RUSH, wrote("/log/-"))) == []
    assert flaws(state(log=[1]), effect(RUSH, wrote("/log/0"))) == []
    assert flaws(state(log=[1]), effect(RUSH, wrote("/log/{item}"))) == []
    one_flaw("tools[2].effect.write", f"{NOWHERE}/log/1", state(log=[1]), effect(RUSH, wrote("/log/1")))


@pytest.mark.parametrize(
    "edits",
    [
        (effect(GET, {"read": "/orders/new/{id}"}), gives(GET)),
        (effect(GET, {"read": "/made/{id}/of"}), effect(RUSH, wrote("/made", {"{item}": {"of": 1}})), gives(GET)),
        (
            effect(RUSH, wrote("/made", {"x": {}})),
            more_tool("fill", {"x": {}}, effect={"write": "/made/x/y", "value": "{x}"}),
            more_tool("look", {}, effect={"read": "/made/x/y/any/where"}),
        ),
        (state(returns={}), more_tool("find", {"id": TEXT}, outputs=outputs(a=TEXT), effect={"read": "/returns/{id}"})),
        (state(returns={}), more_tool("end", {"id": TEXT}, effect={"write": "/returns/{id}/done", "value": 1})),
        (
            effect(GET, {"read": "/order/{id}"}),
            lambda task: task["world"].update(
                responses=[{"tool": "get_order", "arguments": {"id": "x"}, "answer": {"item": "fig"}}]
            ),
        ),
        (effect(RUSH, wrote("/x", **{"/orders/new/quantity": 3})),),
        (effect(RUSH, wrote("/x", **{"/catalogue/item": "{item}"})),),
    ],
)
def test_an_effect_that_may_lead_somewhere(edits: tuple[Edit, ...]):
    """What a write makes, what a write behind another one makes, rows that are not there yet, what a response answers,
    what arguments decide."""
    assert flaws(*edits) == []


def test_a_write_that_is_always_refused_makes_nothing():
    """What leads there leads nowhere."""
    edits = effect(RUSH, wrote("/carts/{item}")), effect(GET, {"read": "/carts/{id}"})
    assert [found.partition(":")[0] for found in flaws(*edits)] == ["tools[0].effect.read", "tools[2].effect.write"]


# --- outputs that the effect does not give --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("edit", "field", "reason"),
    [
        (gives(GET, item=TEXT, amount=NUMBER), "[0].outputs.properties.amount", "get_order gives no 'amount', so that"),
        (gives(PLACE, code=TEXT, due=TEXT), "[1].outputs.properties.due", "place_order gives no 'due', so that it is"),
        (
            lambda v: (v["tools"][PLACE]["effect"]["value"].pop("code"), v["rubric"]["subgoals"].pop()),
            "[1].outputs.properties.code",
            "place_order gives no 'code'",
        ),
        (gives(LIST, orders={"type": "array"}), "[4].outputs.properties.orders", "list_orders gives no 'orders'"),
    ],
)
def test_an_output_that_nothing_has(edit: Edit, field: str, reason: str):
    """Neither a record nor a written value."""
    one_flaw(f"tools{field}", f"the effect of {reason}", edit)


@pytest.mark.parametrize(
    ("edits", "field", "reason"),
    [
        ([gives(GET, quantity=TEXT)], "[0].outputs.properties.quantity", "get_order gives 2: expected string"),
        ([gives(GET, quantity={"enum": [1, 3]})], "[0].outputs.properties.quantity", "get_order gives 2: expected one"),
        ([gives(PLACE, code={"type": "integer"})], "[1].outputs.properties.code", 'gives "47": expected integer'),
        ([gives(PLACE, quantity=TEXT)], "[1].outputs.properties.quantity", 'gives "{quantity}": expected string'),
        ([gives(PLACE, note=NUMBER)], "[1].outputs.properties.note", 'gives "{quantity} of {item}": expected integer'),
        (
            [effect(LIST, {"read": "/catalogue/item"}), gives(LIST, opens={"type": "boolean"})],
            "[4].outputs.properties.opens",
            'list_orders gives "apple": expected boolean',
        ),
    ],
)
def test_an_output_of_another_type(edits: list[Edit], field: str, reason: str):
    """A record's, a constant's, an argument's, a text with arguments in it, a value that is the only output."""
    found = flaws(*edits)
    assert any(one.startswith(f"tools{field}: the effect of ") and reason in one for one in found), found


def test_several_outputs_of_what_is_no_object():
    """They are made up, all of them; one alone is the value."""
    reading = [effect(LIST, {"read": "/log"}), state(log=["a", "b"])]
    one_flaw(
        "tools[4].outputs", "list_orders gives no object", *reading, gives(LIST, lines={"type": "array"}, count=NUMBER)
    )
    assert flaws(*reading, gives(LIST, lines={"type": "array", "items": TEXT})) == []
    one_flaw("tools[2].outputs", "rush_order gives no object", effect(RUSH, wrote("/x", 1)), gives(RUSH, a=NUMBER))


@pytest.mark.parametrize(
    "edits",
    [
        (gives(PLACE, quantity={"type": "number"}, note=TEXT, item={"type": ["string", "null"]}),),
        (gives(RUSH, parcel=TEXT),),
        (gives(HOURS, anything=TEXT),),
        (effect(RUSH, wrote("/x", "{item}")), gives(RUSH, anything=TEXT)),
        (
            gives(GET, item=TEXT, courier=TEXT),
            lambda task: task["world"].update(
                responses=[{"tool": "get_order", "arguments": {"id": "x"}, "answer": {"courier": "bike"}}]
            ),
        ),
        (state(orders={"old": {"item": "pear", "quantity": 2}, "new": {"item": "fig", "colour": "red"}}),),
    ],
)
def test_an_output_that_may_be_given(edits: tuple[Edit, ...]):
    """By an argument, by a record of several, by a response, or made up on purpose where no effect says anything."""
    assert flaws(*edits) == []


# --- calls that the world always refuses ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("check", "reason", "edits"),
    [
        (called("get_order", id="lost"), f"effect.read {NOWHERE}/orders/lost", ()),
        (called("place_order", item="pear"), 'effect.requires./catalogue/item is never "pear", but "apple"', ()),
        (
            {"called": {"tool": "find", "ok": True}},
            f"effect.read {NOWHERE}/returns/{{id}}",
            (state(returns={}), more_tool("find", {"id": TEXT}, effect={"read": "/returns/{id}"})),
        ),
        (
            called("end", id="a"),
            f"effect.write {NOWHERE}/returns/a",
            (state(returns={}), more_tool("end", {"id": TEXT}, effect={"write": "/returns/{id}/done", "value": 1})),
        ),
    ],
)
def test_a_call_that_the_world_always_refuses(check: Json, reason: str, edits: tuple[Edit, ...]):
    """With the arguments that the check wants, the record is not there, or a requirement never holds."""
    field = "rubric.subgoals[2].check.called"
    one_flaw(field, f"the world refuses every such call: {reason}", *edits, item(check))


@pytest.mark.parametrize(
    "check",
    [
        called("get_order", id="new"),
        called("get_order", ok=None, id="lost"),
        called("get_order", ok=False, id="lost"),
        held("get_order", {"properties": {"id": {"enum": ["lost", "old"]}}}),
        called("shop_hours", day="Monday"),
    ],
)
def test_a_call_that_may_succeed(check: Json):
    """What a write makes is there, what nothing declares is drawn, a refusal may be meant."""
    assert flaws(item(check)) == []


def test_a_call_in_several_checks_is_named_once():
    """The first place says it."""
    check = called("get_order", id="lost")
    again = {"all": [check, {"not": {"before": [{"answered": {"matches": "47"}}, check]}}]}
    one_flaw("rubric.subgoals[2].check.called", "effect.read", item(check), item(again, "interactions", "again"))


# --- items that doing nothing meets ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("check", "how"),
    [
        ({"not": {"called": {"tool": "rush_order"}}}, "doing nothing"),
        ({"all": [{"not": {"called": {"tool": "rush_order"}}}, {"not": {"revealed": "item"}}]}, "doing nothing"),
        ({"any": [{"revealed": "item"}, {"not": {"said": {"matches": "x"}}}]}, "doing nothing"),
        ({"answered": {"matches": ""}}, "an empty answer"),
        ({"answered": {"matches": "(?i)^(ok|)$"}}, "an empty answer"),
        ({"answered": {"matches": "(?i)done"}}, "the answer 'Done.'"),
        ({"any": [{"called": {"tool": "rush_order"}}, {"answered": {"matches": r"\w"}}]}, "the answer 'Done.'"),
    ],
)
@pytest.mark.parametrize(("part", "place"), [("subgoals", 2), ("interactions", 1)])
def test_an_item_that_doing_nothing_meets(check: Json, how: str, part: str, place: int):
    """Without a call and a question: silence, an empty answer, one that says nothing."""
    one_flaw(f"rubric.{part}[{place}].check", f"{how} meets it", item(check, part))


def test_what_asks_for_a_deed_is_not_met_by_nothing():
    """A `not` beside a call; and a forbidden item is there to be met by what is not done."""
    undone = {"not": {"called": {"tool": "rush_order"}}}
    assert flaws(item({"all": [{"called": {"tool": "list_orders"}}, undone]})) == []
    assert flaws(item({"not": {"revealed": "item"}}, "forbidden")) == []


# --- items that exclude each other ----------------------------------------------------------------------------------

ORDERED: Json = {"called": {"tool": "place_order", "ok": True}}
"""A subgoal of the shop's."""


@pytest.mark.parametrize(
    ("check", "wanted"),
    [
        (ORDERED, "subgoal 'ordered'"),
        ({"called": {"tool": "place_order"}}, "subgoal 'ordered'"),
        ({"revealed": "quantity"}, "interaction 'asked'"),
        ({"any": [{"revealed": "item"}, ORDERED]}, "subgoal 'ordered'"),
        ({"all": [ORDERED, {"called": {"tool": "place_order"}}]}, "subgoal 'ordered'"),
    ],
)
def test_a_forbidden_item_that_a_good_episode_meets(check: Json, wanted: str):
    """The same check, or one that holds wherever the other does."""
    one_flaw("rubric.forbidden[1].check", f"whoever meets {wanted} meets it too, and earns 0", item(check, "forbidden"))


def test_a_part_of_what_is_wanted_is_forbidden():
    """Of several things all of which are wanted, and of several each of which brings it."""
    listed = {"called": {"tool": "list_orders"}}
    both = called("list_orders", ok=None), called("list_orders", ok=None, page=1)
    for check in ({"all": [listed, ORDERED]}, {"before": [listed, ORDERED]}, {"any": list(both)}):
        found = flaws(item(check), item(listed, "forbidden", "f"))
        assert any(one.startswith("rubric.forbidden[1].check: whoever meets subgoal 'more'") for one in found), found


@pytest.mark.parametrize(
    "check",
    [
        called("place_order", item="pear", ok=None),
        {"called": {"tool": "place_order", "ok": False}},
        {"all": [ORDERED, {"revealed": "item"}]},
        {"before": [ORDERED, {"revealed": "item"}]},
        {"not": ORDERED},
        {"revealed": "item"},
    ],
)
def test_a_forbidden_item_beside_what_is_wanted(check: Json):
    """It asks for more, or for something else."""
    assert flaws(item(check, "forbidden")) == []


# --- what only the user knows ---------------------------------------------------------------------------------------


def told(value: Json, instruction: str = "", rules: str = "") -> Edit:
    """The quantity, which the rubric wants asked for, has another value; the agent reads these texts."""

    def edit(task: dict[str, Any]) -> None:
        task["user"]["facts"]["quantity"]["value"] = value
        task["user"]["context"] = f"Knows {value}."
        task["instruction"] += instruction
        task["rules"] += rules

    return edit


@pytest.mark.parametrize(
    ("value", "said"),
    [
        ("HM-2207", "It is HM-2207."),
        ("HM-2207", "It is hm 2207!"),
        ("15:00", "At 15:00, please."),
        ("Cafe\u0301 Rosa", "For the CAFÉ ROSA."),
        (2207, "Number 2207."),
        (["Oslo", "Bergen"], "From Bergen to Oslo."),
    ],
)
def test_a_value_that_the_agent_reads_unasked(value: Json, said: str):
    """In the instruction and in the rules, in any case and whatever stands between its words."""
    reason = f"says {value!r}, the user's fact 'quantity' that the agent has to ask for"
    one_flaw("instruction", reason, told(value, instruction=f" {said}"))
    one_flaw("rules", reason, told(value, rules=f" {said}"))


@pytest.mark.parametrize(
    ("value", "instruction", "rules"),
    [
        (5, " For 5 people.", " At most 5."),
        ("HM-2207", " It is HM-22071.", " Not XHM-2207."),
        ("standard", "", " The standard fare has no refund."),
        ("apple", " An apple, or a pear?", " Sell apple or pear."),
        ("Oslo", "", " There are shops in Oslo and Bergen."),
        (True, " True.", " true"),
        (["Oslo", "Rome"], " From Oslo.", ""),
    ],
)
def test_a_value_that_stands_there_by_chance(value: Json, instruction: str, rules: str):
    """Small numbers, parts of longer words, everyday words of rules, one choice among others, one place of two."""
    assert flaws(told(value, instruction, rules), state(shops={"Oslo": 1, "Bergen": 2})) == []


def test_a_value_that_need_not_be_asked_for():
    """The instruction may say what no item wants revealed."""
    assert flaws(lambda task: task.update(instruction="Please by Friday.")) == []
    one_flaw(
        "instruction",
        "'Friday'",
        lambda task: task.update(instruction="Please by Friday."),
        item({"all": [{"called": {"tool": "list_orders"}}, {"revealed": "due_date"}]}),
    )


@pytest.mark.parametrize("value", ["HM-2207", "K4107", ["K4107", "A-11"]])
def test_a_code_that_the_context_does_not_have(value: Json):
    """Whoever is told the context alone does not know it."""
    code = value if isinstance(value, str) else "A-11"
    context = {"context": "Has the K4107."} if isinstance(value, list) else {"context": "Likes tea."}
    one_flaw(
        "user.facts.quantity.value",
        f"the user is to say {code!r}, which stands nowhere in user.context",
        told(value),
        lambda task: task["user"].update(context),
    )


@pytest.mark.parametrize("value", ["HM-2207", "three in the afternoon", "2027-05-14", 38, "second", "May-14", "3pm"])
def test_a_value_that_the_context_may_have_in_other_words(value: Json):
    """A code in another spelling; dates, numbers and words as people say them."""
    assert flaws(told(value), lambda task: task["user"].update(context="Has hm 2207 on 14 May, for 38 at three.")) == []


@pytest.mark.parametrize(
    ("keywords", "others"),
    [(["fruit"], "'item'"), (["item", "which fruit"], "'item'"), (["when", "fruit"], "'due_date', 'item'")],
)
def test_a_fact_that_no_question_asks_for_alone(keywords: list[str], others: str):
    """Each of its keywords is, or has in it, a keyword of another one."""
    one_flaw(
        "user.facts.quantity.keywords",
        f"whoever asks for 'quantity' asks for {others} too: no keyword is its own",
        lambda task: task["user"]["facts"]["quantity"].update(keywords=keywords),
    )


def test_a_fact_with_a_keyword_of_its_own():
    """Others may be shared."""
    assert flaws(lambda task: task["user"]["facts"]["quantity"].update(keywords=["fruit", "number"])) == []


def test_a_fact_behind_two_others_is_never_told():
    """Two facts go into a reply, the first ones."""
    one_flaw(
        "user.facts.colour.keywords",
        "whoever asks for 'colour' asks for 'item', 'due_date' too",
        lambda task: task["user"]["facts"].update(colour={"value": "red", "keywords": ["fruit when"]}),
    )


# --- what is not reached is reached by no call ----------------------------------------------------------------------

_TOKENS = st.sampled_from(["a", "b", "0", "-", "{x}", "{y}", "a{x}"])
_POINTERS = st.lists(_TOKENS, min_size=1, max_size=3).map(lambda tokens: "".join(f"/{token}" for token in tokens))
_LEAVES = st.sampled_from([1, "a", "{x}", "{y}", "b{x}", None])
_VALUES = st.recursive(
    _LEAVES,
    lambda inner: (
        st.dictionaries(st.sampled_from(["a", "b", "0", "{x}"]), inner, max_size=2) | st.lists(inner, max_size=2)
    ),
    max_leaves=5,
)
_STATES = st.dictionaries(
    st.sampled_from("ab0"),
    st.recursive(
        st.sampled_from([1, "a", "b"]),
        lambda inner: st.dictionaries(st.sampled_from("ab0"), inner, max_size=2) | st.lists(inner, max_size=2),
        max_leaves=5,
    ),
    max_size=2,
)
_EFFECTS = st.one_of(
    st.fixed_dictionaries({"read": _POINTERS}),
    st.fixed_dictionaries(
        {"write": _POINTERS, "value": _VALUES}, optional={"requires": st.dictionaries(_POINTERS, _LEAVES, max_size=1)}
    ),
)
_ARGUMENTS = st.fixed_dictionaries(
    {"x": st.sampled_from(["a", "b", "0", "-", 0, True, None, {"a": {"b": 1}}, [{}]])},
    optional={"y": st.sampled_from(["a", "0", 1])},
)
_CALLS = st.lists(st.tuples(st.integers(0, 3), _ARGUMENTS), max_size=8)


@settings(max_examples=300)
@given(_STATES, st.lists(_EFFECTS, min_size=1, max_size=4), _CALLS)
def test_what_is_not_reached_is_reached_by_no_call(
    start: dict[str, Any], effects: list[dict[str, Any]], calls: list[tuple[int, dict[str, Any]]]
):
    """Whatever is called in whatever order: a call that succeeds was not said to be refused."""
    parameters = {"type": "object", "properties": {"x": {}, "y": TEXT | {"type": ["string", "integer"]}}}
    tools = [
        Tool(name=f"t{index}", description="", parameters=parameters, effect=one) for index, one in enumerate(effects)
    ]
    task = Task(id="t", instruction="t", rubric=Rubric(), tools=tuple(tools), world=WorldSpec(state=start))
    reach, now = Reach(task), task.world.state
    for index, arguments in calls:
        called_tool = tools[index % len(tools)]
        done = apply(task, now, ToolCall(name=called_tool.name, arguments=arguments))
        now = done.state
        if done.ok:
            assert reach.refusal(called_tool) is None
            assert reach.refusal(called_tool, arguments) is None


def test_the_shop_is_reached():
    """Of the shop's tools none is refused."""
    task = shop()
    assert [Reach(task).refusal(one) for one in task.tools] == [None] * len(task.tools)
