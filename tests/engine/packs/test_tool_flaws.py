"""engine.packs.tool_flaws: effects that lead nowhere, outputs that they do not give, names in two spellings."""

import pytest

from tests.parts.flawed_shop import (
    GET,
    HOURS,
    LIST,
    NOWHERE,
    PLACE,
    RUSH,
    Edit,
    called,
    effect,
    flaws,
    gives,
    item,
    more_tool,
    one_flaw,
    state,
    wrote,
)
from tests.parts.worlds import NUMBER, TEXT, outputs

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
        (state(log=[]), effect(RUSH, wrote("/log/-")), more_tool("last", {}, effect={"read": "/log/0"})),
        (effect(RUSH, wrote("/x", **{"/orders/new/quantity": 3})),),
        (effect(RUSH, wrote("/x", **{"/catalogue/item": "{item}"})),),
    ],
)
def test_an_effect_that_may_lead_somewhere(edits: tuple[Edit, ...]):
    """What a write makes, what a write behind another one makes, rows that are not there yet, what a response answers,
    what arguments decide."""
    assert flaws(*edits) == []


def test_what_a_tool_suffers_is_told_of_the_tool_alone():
    """Not of each check that calls it."""
    one_flaw("tools[0].effect.read", NOWHERE, effect(GET, {"read": "/order/{id}"}), item(called("get_order", id="old")))


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
