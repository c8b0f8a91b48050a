"""Rubric checks over numbered events."""

from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.errors import ConfigError
from engine.reward.check_kinds import (
    CHECKS,
    CheckKind,
    CheckProblem,
    Decision,
    Evaluator,
    Names,
    check_problems,
    check_schema,
)
from engine.reward.checks import comparable, evaluate_check
from engine.schema.validate import compiled_schema
from engine.types import Event, EventKind
from tests.parts.worlds import shop

TASK = shop()
NAMES = Names(tools=frozenset({"get_order"}), facts=frozenset({"item", "quantity"}))


def called(number: int, tool: str, ok: bool = True, **arguments: Any) -> Event:
    """A tool call event."""
    return Event(number=number, turn=number, kind=EventKind.CALLED, text="{}", tool=tool, arguments=arguments, ok=ok)


def said(number: int, text: str, *revealed: str) -> Event:
    """A message to the user."""
    return Event(number=number, turn=number, kind=EventKind.SAID, text=text, revealed=revealed)


def answered(number: int, text: str) -> Event:
    """The final answer."""
    return Event(number=number, turn=number, kind=EventKind.ANSWERED, text=text)


EVENTS = [
    said(0, "How many?", "quantity"),
    called(1, "place_order", ok=False, item="pear", quantity=5),
    called(2, "get_order", id="old"),
    called(3, "place_order", item=" apple", quantity=5.0),
    answered(4, "Your code is 47."),
]
PLACED = {"called": {"tool": "place_order", "ok": True}}
ASKED = {"revealed": "quantity"}
LOOKED = {"called": {"tool": "get_order"}}
NEVER = {"called": {"tool": "rush_order"}}


def exact(**values: Any) -> dict[str, Any]:
    """An arguments schema that fixes some properties."""
    return {"properties": {name: {"const": value} for name, value in values.items()}, "required": list(values)}


def order(**values: Any) -> dict[str, Any]:
    """A check for an order with these arguments."""
    return {"called": {"tool": "place_order", "arguments": exact(**values)}}


@pytest.mark.parametrize(
    ("check", "met", "evidence"),
    [
        (PLACED, True, 3),
        ({"called": {"tool": "place_order"}}, True, 1),
        ({"called": {"tool": "place_order", "ok": False}}, True, 1),
        (order(item="apple", quantity=5), True, 3),
        (order(item="apple", quantity=5.0), True, 3),
        (order(item="apple", gift=False), True, 3),
        (order(item="apple", quantity="5"), False, None),
        (order(quantity=True), False, None),
        (NEVER, False, None),
        (ASKED, True, 0),
        ({"revealed": "item"}, False, None),
        ({"said": {"matches": "(?i)how MANY"}}, True, 0),
        ({"said": {"matches": "code"}}, False, None),
        ({"answered": {"matches": r"\b47\b"}}, True, 4),
        ({"before": [ASKED, PLACED]}, True, 3),
        ({"before": [PLACED, ASKED]}, False, 0),
        ({"before": [LOOKED, {"called": {"tool": "place_order"}}]}, False, 1),
        ({"before": [LOOKED, PLACED]}, True, 3),
        ({"before": [LOOKED, LOOKED]}, False, 2),
        ({"before": [NEVER, PLACED]}, False, None),
        ({"before": [PLACED, NEVER]}, False, None),
        ({"before": [{"all": [ASKED, LOOKED]}, PLACED]}, True, 3),
        ({"before": [{"before": [ASKED, LOOKED]}, PLACED]}, True, 3),
        ({"before": [{"before": [PLACED, ASKED]}, LOOKED]}, False, None),
        ({"before": [ASKED, {"before": [PLACED, LOOKED]}]}, False, None),
        ({"before": [{"any": [NEVER, PLACED]}, {"answered": {"matches": "."}}]}, True, 4),
        ({"all": [ASKED, PLACED]}, True, 3),
        ({"all": [ASKED, NEVER]}, False, None),
        ({"any": [NEVER, PLACED, ASKED]}, True, 0),
        ({"any": [NEVER]}, False, None),
        ({"not": NEVER}, True, None),
        ({"not": PLACED}, False, 3),
        ({"all": [{"not": NEVER}, PLACED]}, True, 3),
    ],
)
def test_a_check_says_whether_and_where(check: Any, met: bool, evidence: int | None) -> None:
    """Each kind of check, true and false, with the event that decided it."""
    assert evaluate_check(check, comparable(TASK, EVENTS)) == (met, evidence)


@given(st.permutations(EVENTS), st.sampled_from([PLACED, ASKED, {"before": [ASKED, PLACED]}, {"not": NEVER}]))
def test_numbers_decide_the_order(events: list[Event], check: Any) -> None:
    """Events may be recorded in any order: their numbers count."""
    assert evaluate_check(check, comparable(TASK, events)) == evaluate_check(check, comparable(TASK, EVENTS))


def test_a_call_that_the_world_refused_still_counts_as_tried() -> None:
    """Arguments of unknown tools and impossible values are compared as they are."""
    events = comparable(TASK, [called(0, "nope", ok=False, a=1), called(1, "place_order", ok=False, item=float("nan"))])
    assert evaluate_check({"called": {"tool": "place_order"}}, events) == (True, 1)


WRONG = (
    ({"called": {"tool": "nope"}}, "no tool 'nope'"),
    ({"called": {"tool": []}}, "no tool []"),
    ({"called": {"tool": "get_order", "argument": {}}}, "takes {tool"),
    ({"called": {"tool": "get_order", "ok": 1}}, "true or false"),
    ({"called": {"tool": "get_order", "arguments": {"type": "objekt"}}}, "objekt"),
    ({"called": {"tool": "get_order", "arguments": {"$ref": "http://x"}}}, "local"),
    ({"revealed": "colour"}, "no fact 'colour'"),
    ({"revealed": ["item"]}, "no fact"),
    ({"said": {"matches": "(?=x)"}}, "RE2"),
    ({"said": "x"}, "takes"),
    ({"before": [ASKED]}, "2 checks"),
    ({"before": [ASKED, {"not": PLACED}]}, "no place in an order"),
    ({"before": [ASKED, {"all": [LOOKED, {"not": PLACED}]}]}, "no place in an order"),
    ({"before": [{"before": [{"any": [{"all": [{"not": ASKED}]}]}, LOOKED]}, ASKED]}, "no place in an order"),
    ({"called": {"tool": "get_order", "arguments": exact(id="cafe\u0301")}}, r"write 'caf\xe9'"),
    ({"called": {"tool": "get_order", "arguments": {"required": ["cafe\u0301"]}}}, r"write {'caf\xe9': None}"),
    ({"called": {"tool": "get_order", "arguments": {"properties": {"id": {"enum": ["a", "b "]}}}}}, "write 'b'"),
    ({"all": []}, "at least one"),
    ({"any": {}}, "at least one"),
    ({"not": []}, "one key"),
    ({"all": [{"any": [{"sayd": 1}]}]}, "unknown check 'sayd'"),
    ({}, "one key"),
    ([], "one key"),
)


@pytest.mark.parametrize(("check", "reason"), WRONG)
def test_a_wrong_check_is_found_at_load(check: Any, reason: str) -> None:
    """Every way in which a check of a pack can be wrong has a reason."""
    problems = list(check_problems(check, NAMES))
    assert any(reason in problem.reason for problem in problems)


SOUND = (
    {"all": [{"before": [ASKED, LOOKED]}, {"not": LOOKED}]},
    {"not": {"before": [ASKED, LOOKED]}},
    {"before": [ASKED, {"called": {"tool": "get_order", "arguments": {"not": exact(id="old")}}}]},
    {"called": {"tool": "get_order", "arguments": exact(id="caf\u00e9", n=5.0, flags=[None, True, {" ": 1}])}},
)


@pytest.mark.parametrize("check", SOUND)
def test_a_sound_check_is_not_refused(check: Any) -> None:
    """`not` around or beside an order, and inside a schema of arguments; literals in canonical form."""
    assert list(check_problems(check, NAMES)) == []


def test_an_unknown_check_is_never_guessed() -> None:
    """Evaluating what is not a check raises, it does not count as false."""
    with pytest.raises(ValueError, match="unknown check 'sayd'"):
        evaluate_check({"sayd": {}}, [])


# --- the table of kinds ---------------------------------------------------------------------------------------------

SCHEMA = compiled_schema(check_schema())
LEAVES = (
    ASKED,
    LOOKED,
    {"said": {"matches": "a+"}},
    {"answered": {"matches": 3}},
    {"revealed": None},
    {"called": {}},
    7,
)
WHOLE = st.recursive(
    st.sampled_from(LEAVES),
    lambda inner: (
        st.lists(inner, max_size=3).flatmap(
            lambda parts: st.sampled_from([{name: parts} for name in ("before", "all", "any")])
        )
        | inner.map(lambda check: {"not": check})
    ),
    max_leaves=5,
)


@pytest.mark.parametrize("name", CHECKS)
def test_every_kind_shows_an_example_of_itself(name: str) -> None:
    """It fits the JSON Schema, is sound for a task that has what it names, and can be evaluated."""
    check = {name: CHECKS[name].example}
    assert SCHEMA(check) is None
    assert (
        list(check_problems(check, Names(frozenset(tool.name for tool in TASK.tools), frozenset({"quantity"})))) == []
    )
    assert evaluate_check(check, comparable(TASK, EVENTS)).met
    assert CHECKS[name].says.endswith(".")


@given(WHOLE)
def test_what_the_json_schema_refuses_is_refused_at_load(check: Any) -> None:
    """An editor that holds a pack against the schema never calls a sound check wrong."""
    if SCHEMA(check) is not None:
        assert list(check_problems(check, NAMES))


@pytest.mark.parametrize(
    "check", [*SOUND, *(check for check, reason in WRONG if "takes" in reason or "one key" in reason)]
)
def test_the_json_schema_tells_shapes_apart(check: Any) -> None:
    """Of checks whose mistake is their shape it accepts none."""
    assert (SCHEMA(check) is None) == (check in SOUND)


def test_a_kind_is_one_entry(monkeypatch: pytest.MonkeyPatch) -> None:
    """With it a pack may use the kind, a mistake in it is found at load, and the JSON Schema has it."""

    def build(count: int) -> Evaluator:
        return lambda events: Decision(met=len(events) >= count, evidence=None)

    def problems(body: Any, _names: Names, path: str) -> Iterator[CheckProblem]:
        if not isinstance(body, int):
            yield CheckProblem(path, "takes a number")

    schema = {"type": "integer"}
    kind = CheckKind(says="So many events happened.", example=2, schema=schema, build=build, problems=problems)
    monkeypatch.setitem(CHECKS, "happened", kind)
    rubric = {"subgoals": [{"id": "busy", "text": "", "check": {"not": {"happened": 6}}}]}
    (item,) = shop(rubric=rubric).rubric.subgoals
    assert evaluate_check(item.check, comparable(TASK, EVENTS)).met
    with pytest.raises(ConfigError, match=r"rubric\.subgoals\[0\]\.check\.not\.happened: takes a number"):
        shop(rubric={"subgoals": [{"id": "busy", "text": "", "check": {"not": {"happened": "x"}}}]})
    assert compiled_schema(check_schema())({"happened": 2}) is None
    assert SCHEMA({"happened": 2}) is not None
