"""What the scripted endpoint says by rules, role by role."""

import pytest

from engine.schema.validate import compiled_schema
from engine.scripted.players import find_document, player
from engine.world.offline_user import UNSURE

OUTPUTS = {
    "type": "object",
    "properties": {"code": {"type": "string"}, "left": {"type": "integer", "minimum": 10}},
    "required": ["code", "left"],
    "additionalProperties": False,
}


PARAMETERS = {"properties": {"who": {"type": "string"}, "code": {"type": "string", "pattern": "^[a-zA-Z -]+$"}}}


def tool(arguments: dict, *answers: dict, outputs: dict | None = OUTPUTS) -> dict:
    """What `get_order(arguments)` gets."""
    described = {"name": "get_order", "parameters": PARAMETERS, "outputs": outputs}
    return player({"as": "tool", "tool": described, "arguments": arguments, "answers": list(answers)}).reply()


def answered(number: int, arguments: dict, name: str = "get_order") -> dict:
    """An earlier answer of the same world state."""
    return {"number": number, "tool": name, "arguments": arguments, "answer": {"from": number}}


def test_a_tool_answers_equal_calls_alike_and_in_its_schema():
    """Key order and 25 against 25.0 make no difference; other arguments do."""
    first = tool({"id": 25, "who": "Ann"})
    answer = first["answer"]
    assert (first["same_as"], answer["ok"], compiled_schema(OUTPUTS)(answer["outputs"])) == (None, True, None)
    assert tool({"who": "Ann", "id": 25.0}) == first
    assert tool({"who": "Ann", "id": 26}) != first
    assert tool({}, outputs=None)["answer"] == {"ok": True, "outputs": {"status": "ok"}}


def test_a_tool_does_not_contradict_its_call():
    """What an output and an argument both name is what the call said, if the output can be that."""
    answer = tool({"code": "K", "left": 3})["answer"]["outputs"]
    assert answer["code"] == "K"
    assert answer["left"] >= 10


@pytest.mark.parametrize(
    ("arguments", "same_as"),
    [
        ({"who": "ann  LEE", "code": "A B"}, 2),
        ({"who": "Ann-Lee.", "code": "A B"}, 2),
        ({"who": "Ann Lee", "code": "a-b"}, None),
        ({"who": "Ann Leé", "code": "A B"}, None),
        ({"who": "Ann Lee"}, None),
        ({"n": 1}, 3),
        ({"n": True}, None),
    ],
)
def test_a_tool_points_at_the_equal_call(arguments, same_as):
    """Of the same tool: case, white space and punctuation of free text mean nothing, all else does."""
    known = [answered(1, arguments, "other"), answered(2, {"who": "Ann Lee", "code": "A B"})]
    reply = tool(arguments, *known, answered(3, {"n": 1}))
    assert reply["same_as"] == same_as
    assert (reply["answer"]["outputs"] == {"from": same_as}) == (same_as is not None)


def test_a_tool_points_at_a_call_that_was_refused():
    """The form of its answer goes with it."""
    refused = {**answered(1, {"n": 1}), "ok": False, "answer": {"error": "no such order"}}
    assert tool({"n": 1}, refused) == {"same_as": 1, "answer": {"ok": False, "error": "no such order"}}


def user(agent: str, *correct: dict) -> dict:
    """What a user with some facts says."""
    facts = [
        {"name": "due_date", "value": "Friday", "about": ["date", "how soon"]},
        {"name": "size", "value": 5, "about": ["size"]},
        {"name": "colours", "value": ["red", "blue"], "about": ["colour"]},
        {"name": "secret", "value": "x", "about": []},
        {"name": "gift", "value": True, "about": ["id"]},
        {"name": "shoe_size", "value": None, "about": ["shoes"]},
    ]
    return player({"as": "user", "facts": facts, "correct": list(correct), "agent": agent}).reply()


def test_a_user_says_what_is_asked_and_with_which_words():
    """At most two facts, their values literally, the words as the agent wrote them."""
    reply = user("HOW  soon? And the size, and the colour?")
    assert reply == {
        "sentences": [
            {"asked_by": "HOW  soon", "fact": "due_date", "says": "The due date is Friday."},
            {"asked_by": "size", "fact": "size", "says": "The size is 5."},
        ],
        "done": False,
    }
    assert user("Which colour?")["sentences"][0]["says"] == "The colours is red, blue."
    assert user("An id?")["sentences"] == [{"asked_by": "An id?", "fact": "gift", "says": "The gift is yes."}]
    assert user("Any details? Dates?")["sentences"] == [{"asked_by": "", "fact": None, "says": UNSURE}]


def test_a_user_corrects_itself_and_forgets():
    """A mistake is put right before anything else; what is null cannot be recalled."""
    reply = user("Shoes?", {"fact": "size", "said": 6, "right": 5})
    assert reply["sentences"] == [
        {"asked_by": "", "fact": None, "says": "Sorry. The size is 5."},
        {"asked_by": "Shoes", "fact": "shoe_size", "says": "I cannot recall the shoe size right now."},
    ]


EVENTS = [
    {"number": 1, "kind": "called", "tool": "get_order", "ok": True, "arguments": {}, "text": "get_order({})"},
    {"number": 2, "kind": "called", "tool": "cancel_order", "ok": False},
    {"number": 3, "kind": "said", "text": "Which size?", "revealed": ["size"]},
    {"number": 4, "kind": "called", "tool": "ship_order", "ok": True},
    {"number": 5, "kind": "answered", "text": "Done."},
]


@pytest.mark.parametrize(
    ("part", "text", "evidence"),
    [
        ("subgoal", "Calls get_order before ship_order.", 4),
        ("subgoal", "Calls get_order.", 1),
        ("subgoal", "Calls get_order and cancel_order.", None),
        ("subgoal", "Calls get_orders.", None),
        ("subgoal", "Reports the code.", 5),
        ("interaction", "Asks for the size.", 3),
        ("interaction", "Confirms with ship_order()", 4),
        ("forbidden", "Never ship_order or get_address.", 4),
        ("forbidden", "Never cancel_order.", None),
        ("forbidden", "Is rude.", None),
    ],
)
def test_a_judge_looks_for_the_tools_that_an_item_names(part, text, evidence):
    """Called with success, all of them; forbidden ones, any. Without a name the episode's end or a revealed fact."""
    items = [{"id": "x", "part": part, "text": text}]
    assert player({"as": "judge", "items": items, "events": EVENTS}).reply() == {"x": evidence}


def test_a_judge_without_events_finds_nothing():
    """One verdict an item."""
    items = [{"id": part, "part": part, "text": ""} for part in ("subgoal", "interaction", "forbidden")]
    reply = player({"as": "judge", "items": items, "events": []}).reply()
    assert reply == {"subgoal": None, "interaction": None, "forbidden": None}


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ('a {"as":"user","x":1} b {"as":"judge"} c', {"as": "judge"}),
        ('{"as":"user","x":{"as":"tool"}} later {"as":"tool", cut', {"as": "user", "x": {"as": "tool"}}),
        ('{"as":"user", {"as":"tool"}', {"as": "tool"}),
        ('{"as":"admin"}', None),
        ("", None),
    ],
)
def test_the_last_whole_document_is_found(text, found):
    """Neither an object inside a document nor what only starts like one is taken for it."""
    assert find_document(text) == found
