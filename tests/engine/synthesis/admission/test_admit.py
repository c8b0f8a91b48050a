"""Admission: sound tasks pass every test, and each flaw is found under its own code."""

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import pytest

from engine.packs.pack import parse_task
from engine.synthesis.admission.admit import TESTS, TaskAdmission, admission_of
from engine.synthesis.admission.proofs import leaves
from engine.types import Json
from tests.parts.admission_tasks import (
    ANSWER,
    ASKS_DAY,
    ASKS_GUESTS,
    BOOKED,
    DAY,
    HOURS,
    LISTS,
    OTHER_DAY,
    books,
    breakfast,
    exactly,
    item,
    looks,
    lookup,
)
from tests.parts.worlds import TEXT, outputs, tool

EPISODES = 60
Edit = Callable[[dict[str, Any]], object]


async def admitted(value: Mapping[str, Any], episodes: int = EPISODES) -> TaskAdmission:
    """What admission says of a task in the form of a pack."""
    return await admission_of(parse_task(value), episodes)


def codes(admission: TaskAdmission) -> set[str]:
    """Every code that was found."""
    return {flaw.code for finding in admission.findings for flaw in finding.flaws}


def edited(*edits: Edit) -> dict[str, Any]:
    """The sound task with these edits."""
    task = breakfast()
    for edit in edits:
        edit(task)
    return task


def put(value: Json, *path: str | int) -> Edit:
    """An edit: this value at a place."""

    def edit(task: dict[str, Any]) -> None:
        inner: Any = task
        for part in path[:-1]:
            inner = inner[part]
        inner[path[-1]] = value

    return edit


def without(*path: str | int) -> Edit:
    """An edit: a member or element less."""

    def edit(task: dict[str, Any]) -> None:
        inner: Any = task
        for part in path[:-1]:
            inner = inner[part]
        del inner[path[-1]]

    return edit


def more(value: Json, *path: str | int) -> Edit:
    """An edit: an element more at the end of a list."""

    def edit(task: dict[str, Any]) -> None:
        inner: Any = task
        for part in path:
            inner = inner[part]
        inner.append(value)

    return edit


SUBGOAL, ASKED = ("rubric", "subgoals"), ("rubric", "interactions")
NOT_WRITTEN = "<answer>Nothing is known.</answer>"
FLAWS: dict[str, tuple[list[Edit], set[str]]] = {
    "an item that a judge decides": ([without(*SUBGOAL, 4, "check")], {"judged"}),
    "bounds that no number keeps": (
        [more(tool("weigh", {"grams": {"type": "integer", "minimum": 5, "maximum": 1}}), "tools")],
        {"uncallable"},
    ),
    "a state of another type": ([put("eight", "world", "state", "hours", "opens")], {"misfit"}),
    "no gold script": ([without("meta", "gold")], {"no_script"}),
    "an edit for an item that is not there": ([put({"drop": [0]}, "meta", "planted", "nobody")], {"no_script"}),
    "a gold script that misses an item": (
        [
            put({"answered": {"matches": "K-8"}}, *SUBGOAL, 3, "check"),
            put("<answer>Booked: table K-7 or K-8, row R4.</answer>", "meta", "planted", "told_table", "replace", "5"),
        ],
        {"gold_fails"},
    ),
    "an output that nothing settles": (
        [put(outputs(status=TEXT, reference=TEXT), "tools", 1, "outputs")],
        {"drawn"},
    ),
    "an answer of another type": ([put(5, "tools", 1, "effect", "value", "status")], {"gold_misfit"}),
    "an answer that stands in the rules": (
        [
            put("Always name table K-7 and row R4. Never book_hall.", "rules"),
        ],
        {"answer_visible"},
    ),
    "an item that is met from the start": (
        [
            more(item("quiet", {"not": exactly("opening_hours")}), *SUBGOAL),
            put({"insert": {"5": [HOURS]}}, "meta", "planted", "quiet"),
        ],
        {"nothing_pays", "asking_pays"},
    ),
    "a question that counts as what is wanted": (
        [
            without(*ASKED, 0),
            without("meta", "planted", "ask_day"),
            put({"revealed": "day"}, *SUBGOAL, 0, "check"),
            put({"drop": [0]}, "meta", "planted", "looked"),
        ],
        {"asking_pays"},
    ),
    "interactions without a question": (
        [
            put({"called": {"tool": "list_slots"}}, *ASKED, 0, "check"),
            put({"any": [exactly("opening_hours"), exactly("list_slots")]}, *ASKED, 1, "check"),
            put({"drop": [2]}, "meta", "planted", "ask_day"),
        ],
        {"one_call_pays", "repeats_pay", "unasked_pays", "muted_pays", "guessing_pays", "search_pays"}
        | {"flips_others", "flips_nothing", "order_free"},
    ),
    "nothing to guess": ([put({}, "meta", "guesses")], {"muted_pays"}),
    "a mistake that asks": (
        [put([ASKS_DAY, ASKS_GUESTS, LISTS, books("FR-0930", 12), NOT_WRITTEN], "meta", "mistaken", "day")],
        {"mistaken_asks"},
    ),
    "a mistake that the world refuses": ([without("world", "state", "days", OTHER_DAY)], {"mistaken_stuck"}),
    "a mistake without an answer": (
        [put([ASKS_GUESTS, LISTS, books("SA-0930", 12)], "meta", "mistaken", "day")],
        {"mistaken_stuck"},
    ),
    "a fact that changes nothing": (
        [put([ASKS_DAY, LISTS, books("FR-0930", 12), looks("FR-0930"), ANSWER], "meta", "mistaken", "guests")],
        {"fact_useless"},
    ),
    "a fact that no guess changes": (
        [
            without("meta", "mistaken"),
            put([], "meta", "guesses", "guests"),
            without(*ASKED, 1),
            without("meta", "planted", "ask_guests"),
        ],
        {"fact_useless"},
    ),
    "an instruction that gives a number in words": (
        [put("Please book breakfast for twelve of us.", "instruction")],
        {"leak_shown"},
    ),
    "a rule that gives a date in words": (
        [put("List the slots of the 14th of May, book one, open the booking. Never book_hall.", "rules")],
        {"leak_shown"},
    ),
    "a default that gives a date": (
        [put({"type": "string", "default": DAY}, "tools", 0, "function", "parameters", "properties", "day")],
        {"leak_shown"},
    ),
    "a choice of one": (
        [
            put({"type": "string", "enum": [DAY]}, "tools", 0, "function", "parameters", "properties", "day"),
            without("meta", "mistaken", "day"),
            put([[DAY, OTHER_DAY]], "meta", "guesses", "day"),
        ],
        {"leak_shown"},
    ),
    "a public note that says a fact": (
        [put("a table for 12 is laid", "world", "state", "hours", "note")],
        {"leak_read"},
    ),
    "a restriction that the world keeps itself": (
        [
            put({"write": "/halls", "value": {}, "requires": {"/open/hall": True}}, "tools", 4, "effect"),
            put({"called": {"tool": "book_hall"}}, "rubric", "forbidden", 0, "check"),
        ],
        {"violator_refused"},
    ),
    "a violator that does nothing": (
        [put({"insert": {"5": [HOURS]}}, "meta", "planted", "hall")],
        {"violator_paid", "flips_nothing"},
    ),
    "a restriction that gold's own edits violate": (
        [
            more(item("short", {"answered": {"matches": "in row R4"}}), "rubric", "forbidden"),
            put({"replace": {"5": "<answer>Booked in row R4, table K-7.</answer>"}}, "meta", "planted", "short"),
            put("<answer>Your breakfast is booked: table K-7, row R4.</answer>", "meta", "gold", 5),
        ],
        {"tripped", "flips_others"},
    ),
    "an edit that changes nothing": (
        [put({"insert": {"0": [HOURS]}}, "meta", "planted", "told_row")],
        {"flips_nothing"},
    ),
    "an edit that breaks two": (
        [put({"replace": {"5": "<answer>Booked.</answer>"}}, "meta", "planted", "told_row")],
        {"flips_others"},
    ),
    "a write that must come after a question": (
        [put({"all": [BOOKED, {"not": {"before": [BOOKED, {"revealed": "day"}]}}]}, *SUBGOAL, 1, "check")],
        {"order_flips_others"},
    ),
    "questions at any time": (
        [put({"revealed": "day"}, *ASKED, 0, "check"), put({"revealed": "guests"}, *ASKED, 1, "check")],
        {"order_free"},
    ),
    "a read-back at any time": (
        [put(exactly("get_booking", slot="FR-0930"), *SUBGOAL, 2, "check")],
        {"order_free"},
    ),
    "other writes for nothing": (
        [without("rubric", "forbidden", 1), without("meta", "planted", "other")],
        {"write_more"},
    ),
    "a table that stands in a public note": (
        [put("table K-7 is the best", "world", "state", "hours", "note")],
        {"search_decides"},
    ),
}


@pytest.mark.parametrize("value", [breakfast(), lookup()], ids=lambda value: value["id"])
async def test_a_sound_task_is_admitted(value: dict[str, Any]):
    """Every test passes, or does not apply; the adversary has all of its episodes."""
    admission = await admitted(value, 300)
    assert codes(admission) == set()
    assert admission.admitted
    assert [finding.test for finding in admission.findings] == list(TESTS)


async def test_what_does_not_apply_says_why():
    """A task without facts has no gap; without forbidden items nothing is violated; both are no obstacle."""
    whys = {finding.test: finding.why for finding in (await admitted(lookup())).findings}
    assert [test for test, why in whys.items() if why] == ["gap", "guess", "leak", "forbidden", "search"]
    assert whys["gap"] == "the task has no private facts"
    assert whys["forbidden"] == "nothing is forbidden"


@pytest.mark.parametrize("name", FLAWS)
async def test_a_flaw_is_found_under_its_code(name: str):
    """And under no other but those that the same flaw implies; its evidence is there, with the code's own test."""
    edits, expected = FLAWS[name]
    admission = await admitted(edited(*edits))
    assert codes(admission) == expected
    assert not admission.admitted
    for finding in admission.findings:
        assert (finding.result == "failed") == bool(finding.flaws)
        assert len(finding.flaws) == len({flaw.code for flaw in finding.flaws}), "the first of each code"
        assert all(flaw.code in TESTS[finding.test].codes and flaw.evidence for flaw in finding.flaws)


async def test_what_is_drawn_is_told():
    """The output that nothing settles, and not the one beside it that the effect gives."""
    edits, _ = FLAWS["an output that nothing settles"]
    (flaw,) = (flaw for finding in (await admitted(edited(*edits))).findings for flaw in finding.flaws)
    assert flaw.evidence.startswith("nothing settles reference of book_slot")


async def test_a_code_that_any_booking_returns_is_found_unless_other_bookings_are_forbidden():
    """An episode that violates something earns nothing, so what it reaches is no way to a reward."""
    same = [put("K-7", "tools", 1, "effect", "value", "table"), put("R4", "tools", 1, "effect", "value", "row")]
    assert codes(await admitted(edited(*same), 1000)) == set()
    allowed = [without("rubric", "forbidden", 1), without("meta", "planted", "other")]
    assert codes(await admitted(edited(*same, *allowed), 1000)) == {"search_decides", "write_more"}


def test_what_must_not_be_is_no_part_of_what_must():
    """The checks that an item needs, whatever is around them."""
    told, asked, hall = {"answered": {"matches": "x"}}, {"revealed": "day"}, exactly("book_hall")
    check = {"all": [{"any": [told]}, {"not": {"all": [hall, asked]}}, {"before": [asked, told]}]}
    assert [name for name, _ in leaves(check)] == ["answered", "revealed", "answered"]


async def test_a_part_of_the_plan_may_not_be_all_of_it():
    """Where one call, or calls at random, are all that the rubric wants of a task without facts."""
    value = lookup()
    value["rubric"]["subgoals"][1:] = []
    value["meta"]["planted"] = {"looked": {"drop": [1]}}
    found = codes(await admitted(value))
    assert {"one_call_pays", "repeats_pay", "random_pays"} == found


async def test_an_unsound_task_is_not_played():
    """As a compiler may hand one in: the other tests say that they were not applied."""
    task = replace(parse_task(breakfast()), instruction=" ")
    admission = await admission_of(task)
    assert codes(admission) == {"unsound"}
    assert {finding.result for finding in admission.findings[1:]} == {"not applicable"}


async def test_the_same_task_is_told_the_same():
    """Draws follow from the task alone."""
    first, second = [
        (await admitted(edited(without("rubric", "forbidden", 1), without("meta", "planted", "other")))).json()
        for _ in range(2)
    ]
    assert first == second


async def test_a_choice_among_several_is_no_leak():
    """Neither as an enumeration, nor where the rules name all of it."""
    days = {"type": "string", "enum": [DAY, OTHER_DAY]}
    place = ("tools", 0, "function", "parameters", "properties", "day")
    rules = f"{breakfast()['rules']} Days are {DAY} and {OTHER_DAY}."
    assert codes(await admitted(edited(put(days, *place), put(rules, "rules")))) == set()
    assert codes(await admitted(edited(put(days, *place), put(f"Not on {DAY}.", "rules")))) == {"leak_shown"}
    described = days | {"description": f"Mostly {DAY}."}
    assert codes(await admitted(edited(put(described, *place)))) == {"leak_shown"}
    asked_for = put(f"Please book us in on {DAY}, not on {OTHER_DAY}.", "instruction")
    assert codes(await admitted(edited(put(days, *place), asked_for))) == {"leak_shown"}


@pytest.mark.parametrize(("note", "found"), [(f"{DAY} or {OTHER_DAY}", set()), (f"not {DAY}", {"leak_read"})])
async def test_an_answer_that_names_the_wrong_value_too_gives_nothing_away(note: str, found: set[str]):
    """That of the guesses, for a value which is no choice of a parameter."""
    assert codes(await admitted(edited(put(note, "world", "state", "hours", "note")))) == found


def test_every_code_is_shown_by_a_flaw():
    """No test has a code that nothing here leads to."""
    shown = {code for _, expected in FLAWS.values() for code in expected}
    elsewhere = {"unsound", "one_call_pays", "repeats_pay", "random_pays"}
    assert {code for test in TESTS.values() for code in test.codes} == shown | elsewhere


def test_codes_are_unique():
    """A code names its test."""
    every = [code for test in TESTS.values() for code in test.codes]
    assert len(every) == len(set(every))
