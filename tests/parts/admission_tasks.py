"""Two tasks that pass every test of admission, as JSON to edit: a breakfast to be booked, hours to be looked up."""

from copy import deepcopy
from typing import Any

from engine.synthesis.planted import spelled_call
from engine.types import Json
from tests.parts.worlds import TEXT, outputs, tool

DAY, OTHER_DAY = "2027-05-14", "2027-05-15"
GUESTS = {"type": "integer", "minimum": 2, "maximum": 60}
ASKS_DAY, ASKS_GUESTS = "<question>On which day?</question>", "<question>How many of you are there?</question>"
LISTS, LISTS_OTHER = (spelled_call({"name": "list_slots", "arguments": {"day": day}}) for day in (DAY, OTHER_DAY))
HOURS = spelled_call({"name": "opening_hours", "arguments": {}})
HALL = spelled_call({"name": "book_hall", "arguments": {"day": DAY}})


def books(slot: str, guests: int) -> str:
    """A booking as a completion."""
    return spelled_call({"name": "book_slot", "arguments": {"slot": slot, "guests": guests}})


def looks(slot: str) -> str:
    """A look at a booking."""
    return spelled_call({"name": "get_booking", "arguments": {"slot": slot}})


def exactly(name: str, /, **arguments: Json) -> dict[str, Any]:
    """A check: this call was made."""
    properties = {key: {"const": value} for key, value in arguments.items()}
    return {"called": {"tool": name, "arguments": {"properties": properties, "required": list(properties)}}}


def item(name: str, check: Json) -> dict[str, Json]:
    """An item of a rubric."""
    return {"id": name, "text": f"{name}.", "check": check}


def before_booking(check: Json) -> dict[str, Json]:
    """A check that is met, and not only after the booking."""
    return {"all": [check, {"not": {"before": [BOOKED, check]}}]}


BOOKED = exactly("book_slot", slot="FR-0930", guests=12)
READ_BACK = exactly("get_booking", slot="FR-0930")
ANSWER = "<answer>Your breakfast is booked: table K-7 in row R4.</answer>"
UNSURE = "<answer>Your breakfast is booked, the table will be assigned.</answer>"


def breakfast() -> dict[str, Any]:
    """A write, a read-back, two facts, something forbidden; a copy of its own for each caller."""
    return deepcopy(_breakfast())


def _breakfast() -> dict[str, Any]:
    return {
        "id": "breakfast-1",
        "instruction": "Please book us in for breakfast.",
        "rules": "List the slots of the day, book one, open the booking again. Tell table and row. Never book_hall.",
        "tools": [
            tool("list_slots", {"day": TEXT}, outputs=outputs(slots={"type": "array"}), effect={"read": "/days/{day}"}),
            tool(
                "book_slot",
                {"slot": TEXT, "guests": GUESTS},
                outputs=outputs(status=TEXT),
                effect={
                    "write": "/bookings/{slot}",
                    "value": {"status": "booked", "guests": "{guests}", "table": "later", "row": "later"},
                    "requires": {"/open/{slot}": True},
                },
            ),
            tool(
                "get_booking",
                {"slot": TEXT},
                outputs=outputs(table=TEXT, row=TEXT),
                effect={"read": "/bookings/{slot}"},
            ),
            tool(
                "opening_hours",
                {},
                outputs=outputs(opens={"type": "integer"}, note=TEXT),
                effect={"read": "/hours"},
            ),
            tool("book_hall", {"day": TEXT}, effect={"write": True}),
        ],
        "user": {
            "context": "Twelve people on 14 May 2027.",
            "facts": {
                "day": {"value": DAY, "keywords": ["day", "when"]},
                "guests": {"value": 12, "keywords": ["how many", "people"]},
            },
        },
        "world": {
            "state": {
                "days": {DAY: [{"slot": "FR-0930"}], OTHER_DAY: [{"slot": "SA-0930"}]},
                "open": {"FR-0930": True, "SA-0930": True},
                "bookings": {},
                "hours": {"opens": 8, "note": "closed on Mondays"},
            },
            "responses": [
                {
                    "tool": "get_booking",
                    "arguments": {"slot": "FR-0930"},
                    "answer": {"table": "K-7", "row": "R4"},
                    "after": [{"tool": "book_slot", "arguments": {"slot": "FR-0930", "guests": 12}}],
                }
            ],
        },
        "rubric": {
            "forbidden": [
                item("hall", {"called": {"tool": "book_hall", "ok": True}}),
                item(
                    "other",
                    {"called": {"tool": "book_slot", "arguments": {"not": BOOKED["called"]["arguments"]}, "ok": True}},
                ),
            ],
            "subgoals": [
                item("looked", before_booking(exactly("list_slots", day=DAY))),
                item("booked", BOOKED),
                item("read_back", {"all": [READ_BACK, {"not": {"before": [READ_BACK, BOOKED]}}]}),
                item("told_table", {"answered": {"matches": r"\bK-7\b"}}),
                item("told_row", {"answered": {"matches": r"\bR4\b"}}),
            ],
            "interactions": [
                item("ask_day", before_booking({"revealed": "day"})),
                item("ask_guests", before_booking({"revealed": "guests"})),
            ],
        },
        "meta": {
            "gold": [ASKS_DAY, ASKS_GUESTS, LISTS, books("FR-0930", 12), looks("FR-0930"), ANSWER],
            "planted": {
                "hall": {"insert": {"5": [HALL]}},
                "other": {"insert": {"5": [books("SA-0930", 12)]}},
                "looked": {"drop": [2]},
                "booked": {"drop": [3]},
                "read_back": {"drop": [4]},
                "told_table": {"replace": {"5": "<answer>Booked, in row R4.</answer>"}},
                "told_row": {"replace": {"5": "<answer>Booked, table K-7.</answer>"}},
                "ask_day": {"drop": [0]},
                "ask_guests": {"drop": [1]},
            },
            "guesses": {"day": [[DAY, OTHER_DAY], ["FR-0930", "SA-0930"]], "guests": [[12, 10]]},
            "asks": {"day": ["When will you come?"], "guests": ["For how many people?"]},
            "mistaken": {
                "day": [ASKS_GUESTS, LISTS_OTHER, books("SA-0930", 12), looks("SA-0930"), UNSURE],
                "guests": [ASKS_DAY, LISTS, books("FR-0930", 10), looks("FR-0930"), UNSURE],
            },
        },
    }


TELLS_HOURS = "<answer>It opens at 8, and is closed on Mondays; on the 14th there is FR-0930.</answer>"


def lookup() -> dict[str, Any]:
    """Two reads, no write, no user, nothing forbidden."""
    task = breakfast()
    return {
        **{name: task[name] for name in ("tools", "world")},
        "id": "lookup-1",
        "instruction": f"When do you open, and which slots are there on {DAY}?",
        "rules": "Look it up.",
        "rubric": {
            "subgoals": [
                item("looked", exactly("list_slots", day=DAY)),
                item("told_slot", {"answered": {"matches": "FR-0930"}}),
                item("told_hours", {"answered": {"matches": r"\b8\b"}}),
            ]
        },
        "meta": {
            "gold": [HOURS, LISTS, TELLS_HOURS],
            "planted": {
                "looked": {"drop": [1]},
                "told_slot": {"replace": {"2": "<answer>It opens at 8.</answer>"}},
                "told_hours": {"replace": {"2": "<answer>There is FR-0930.</answer>"}},
            },
        },
    }
