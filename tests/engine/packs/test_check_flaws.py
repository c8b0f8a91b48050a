"""engine.packs.check_flaws: checks that nothing meets, that doing nothing meets, that take each other back."""

import pytest

from engine.types import Json
from tests.parts.flawed_shop import NOWHERE, Edit, called, flaws, held, item, more_tool, one_flaw, state
from tests.parts.worlds import TEXT

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
