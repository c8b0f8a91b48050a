"""Scripts of plans that the showcase does not have: nothing written, and mistakes; what is wrong with one is said."""

import json
from dataclasses import replace
from typing import Any

import pytest

from engine.errors import ConfigError
from engine.packs.pack import parse_task
from engine.synthesis.planted import acting, asking, guessed, reordered, script, sprayed, uninformed
from engine.task import Task
from tests.parts.admission_tasks import ASKS_DAY, ASKS_GUESTS, LISTS_OTHER, books, breakfast, looks, lookup


def test_a_plan_that_writes_nothing_has_no_order_and_no_spray():
    """There is nothing before which something must be, and nothing to do once more."""
    task = parse_task(lookup())
    assert reordered(task) == []
    assert list(sprayed(task)) == []


def test_a_plan_without_read_backs_has_no_order_of_them():
    """The other two orders are there."""
    value = breakfast()
    value["meta"]["gold"][4] = "<question>Anything else?</question>"
    assert [one.name for one in reordered(parse_task(value))] == ["looks up late", "asks late"]


def test_an_agent_guesses_what_it_does_not_know():
    """In its calls; it asks all the same, unless it never does."""
    task = parse_task(breakfast())
    found = script(task)
    assert uninformed(found, frozenset({"day", "guests"})) == found.gold
    half = uninformed(found, frozenset({"guests"}))
    assert half[:5] == (ASKS_DAY, ASKS_GUESTS, LISTS_OTHER, books("SA-0930", 12), looks("SA-0930"))
    assert asking(half) == (ASKS_DAY, ASKS_GUESTS)
    assert guessed(task)[:2] == (LISTS_OTHER, books("SA-0930", 10)) == acting(guessed(task))[:2]


def changed(**meta: Any) -> Task:
    """The breakfast with another script."""
    task = parse_task(breakfast())
    return replace(task, meta={**task.meta, **meta})


@pytest.mark.parametrize(
    ("completion", "said"),
    [
        ("<tool_call>{</tool_call>", "meta.mistaken.day.1: a call is"),
        ('<tool_call>["list_slots"]</tool_call>', "meta.mistaken.day.1: a call is"),
        ('<tool_call>{"name": "list_slots", "arguments": []}</tool_call>', "meta.mistaken.day.1: a call is"),
        ('<tool_call>{"name": 7, "arguments": {}}</tool_call>', "meta.mistaken.day.1: a call is"),
        ('<tool_call>{"name": "fly", "arguments": {}}</tool_call>', "its script calls fly, which is no tool of it"),
    ],
)
def test_a_mistake_that_cannot_be_played_is_refused(completion: str, said: str):
    """With task, field and position."""
    with pytest.raises(ConfigError, match=said) as refusal:
        script(changed(mistaken={"day": [ASKS_GUESTS, completion]}))
    assert "breakfast-1" in str(refusal.value)


def test_a_mistake_about_no_fact_is_refused():
    """As are guesses and questions."""
    with pytest.raises(ConfigError, match=r"meta\.mistaken names what is no fact"):
        script(changed(mistaken={"weather": []}))


@pytest.mark.parametrize(
    ("schema", "given", "others"),
    [
        ({"type": "string"}, "", ["something"]),
        ({"type": "object"}, {"a": 1}, []),
        ({"type": "array"}, ["a"], [[]]),
        ({"type": "array", "items": True}, [], []),
        (True, "ab", ["ac"]),
        ({}, 2.5, [3.5]),
    ],
)
def test_any_argument_can_be_sprayed(schema: Any, given: Any, others: list[Any]):
    """Whatever its schema says, and if it says nothing."""
    value = breakfast()
    value["tools"][1]["function"]["parameters"]["properties"]["note"] = schema
    value["meta"]["gold"][3] = books("FR-0930", 12).replace('"guests"', f'"note":{_json(given)},"guests"')
    written = {completion for completions in sprayed(parse_task(value)) for completion in completions}
    for other in others:
        assert any(f'"note":{_json(other)}' in completion for completion in written)


def test_an_argument_that_gold_leaves_out_is_not_sprayed():
    """There is no value to change; the others are changed as ever."""
    value = breakfast()
    before = list(sprayed(parse_task(value)))
    value["tools"][1]["function"]["parameters"]["properties"]["note"] = {"type": "string"}
    assert list(sprayed(parse_task(value))) == before


def _json(value: Any) -> str:
    return json.dumps(value, separators=(",", ":"))
