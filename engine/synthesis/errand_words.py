"""The words of the errands family: details with their values, and the errands that need them. Plain English.

An errand names its own tool and three details; a detail may serve many errands. What is held out is whole errands, so
that a policy which asks there has not met the tool.
"""

from __future__ import annotations

from dataclasses import dataclass

from engine.task import Split
from engine.types import Json


@dataclass(frozen=True, slots=True)
class Detail:
    """One value that an errand needs, as the arguments, the instruction and the user speak of it."""

    says: str
    """How an instruction gives the value."""
    keywords: tuple[str, ...]
    """What a question about it contains."""
    values: tuple[Json, ...]


@dataclass(frozen=True, slots=True)
class Errand:
    """Something that one call gets done."""

    tool: str
    does: str
    details: tuple[str, str, str]


_WHEN = ("when", "what time", "which time", "the time", "at what hour")
_DAY = ("day", "date", "when")
_WHERE = ("where", "city", "town", "place", "destination")
_HOW_MANY = ("how many", "number of", "quantity", "count")

DETAILS = {
    "city": Detail(
        "in {}", keywords=_WHERE, values=("Lisbon", "Oslo", "Krakow", "Bergen", "Turin", "Ghent", "Porto", "Graz")
    ),
    "destination": Detail(
        "to {}", keywords=(*_WHERE, "going", "travel to"),
        values=("Vienna", "Madrid", "Dublin", "Prague", "Zurich", "Athens", "Riga", "Lyon"),
    ),
    "weekday": Detail(
        "on {}", keywords=_DAY,
        values=("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday"),
    ),
    "time": Detail(
        "at {}", keywords=_WHEN,
        values=("08:15", "09:30", "11:00", "12:45", "14:00", "16:20", "18:30", "20:10"),
    ),
    "number_of_people": Detail(
        "for {} people", keywords=(*_HOW_MANY, "people", "persons", "guests", "party size"),
        values=(2, 3, 4, 5, 6, 7, 8, 9),
    ),
    "number_of_nights": Detail("for {} nights", keywords=(*_HOW_MANY, "nights", "how long"), values=(1, 2, 3, 4, 5, 6)),
    "number_of_copies": Detail("in {} copies", keywords=(*_HOW_MANY, "copies"), values=(2, 5, 8, 12, 20, 30, 45)),
    "length_in_minutes": Detail(
        "for {} minutes", keywords=("how long", "minutes", "duration", "length"),
        values=(15, 20, 30, 45, 60, 75, 90),
    ),
    "name": Detail(
        "under the name {}", keywords=("name", "who"),
        values=("Moreau", "Okafor", "Lindgren", "Tanaka", "Haddad", "Novak", "Silva", "Byrne"),
    ),
    "recipient": Detail(
        "for {}", keywords=("recipient", "who", "whom", "name", "receive"),
        values=("Amina", "Jonas", "Priya", "Mateo", "Greta", "Kofi", "Yuki", "Elin"),
    ),
    "color": Detail(
        "in {}", keywords=("color", "colour"),
        values=("red", "navy", "olive", "white", "black", "yellow", "purple", "grey"),
    ),
    "size": Detail(
        "in size {}", keywords=("size", "how big", "how large"),
        values=("XS", "S", "M", "L", "XL", "XXL"),
    ),
    "plan": Detail(
        "with the {} plan", keywords=("plan", "tariff", "package", "subscription"),
        values=("basic", "family", "student", "premium", "senior", "weekend"),
    ),
    "order_number": Detail(
        "for order {}", keywords=("order number", "order id", "which order", "order"),
        values=("K4107", "K2285", "K9931", "K6540", "K3378", "K7012", "K5894", "K1466"),
    ),
    "room": Detail(
        "in room {}", keywords=("room", "where"), values=("B12", "C04", "A31", "D17", "E22", "F09", "G15")
    ),
    "flavour": Detail(
        "with {}", keywords=("flavour", "flavor", "taste", "kind", "filling"),
        values=("lemon", "walnut", "cherry", "vanilla", "hazelnut", "apricot", "ginger"),
    ),
    "weight_in_kg": Detail(
        "of {} kg", keywords=("weight", "weigh", "heavy", "kilograms", "kg"), values=(2, 3, 5, 7, 9, 12, 16, 21)
    ),
    "kind_of_pet": Detail(
        "for my {}", keywords=("pet", "animal", "which animal", "dog or cat"),
        values=("dog", "cat", "rabbit", "parrot", "hamster", "ferret"),
    ),
    "license_plate": Detail(
        "for the car {}", keywords=("plate", "licence", "license", "registration", "which car"),
        values=("TX-417", "LM-902", "QB-338", "ZR-651", "HN-274", "VK-819"),
    ),
    "language": Detail(
        "in {}", keywords=("language", "which language"),
        values=("Spanish", "Polish", "Korean", "Arabic", "Finnish", "Greek", "Hindi"),
    ),
}  # fmt: skip

ERRANDS = {
    Split.TRAIN: (
        Errand("book_table", "Book a restaurant table", ("number_of_people", "weekday", "time")),
        Errand("reserve_hotel", "Reserve a hotel room", ("city", "number_of_nights", "number_of_people")),
        Errand("buy_train_ticket", "Buy a train ticket", ("destination", "weekday", "time")),
        Errand("order_cake", "Order a birthday cake", ("flavour", "weekday", "name")),
        Errand("send_parcel", "Send a parcel", ("destination", "weight_in_kg", "recipient")),
        Errand("order_shirt", "Order a shirt", ("color", "size", "recipient")),
        Errand("book_vet", "Book a visit to the vet", ("kind_of_pet", "weekday", "time")),
        Errand("start_phone_plan", "Start a phone contract", ("plan", "name", "weekday")),
        Errand("move_delivery", "Move a delivery", ("order_number", "weekday", "time")),
        Errand("book_meeting_room", "Book a meeting room", ("room", "time", "length_in_minutes")),
        Errand("print_poster", "Print my poster", ("number_of_copies", "color", "size")),
        Errand("reserve_parking", "Reserve a parking space", ("license_plate", "weekday", "city")),
        Errand("book_interpreter", "Book an interpreter", ("language", "weekday", "length_in_minutes")),
        Errand("order_flowers", "Order a bunch of flowers", ("color", "recipient", "city")),
        Errand("book_massage", "Book a massage", ("length_in_minutes", "weekday", "name")),
        Errand("rent_bikes", "Rent bikes", ("number_of_people", "size", "weekday")),
        Errand("book_ferry", "Book the ferry", ("destination", "number_of_people", "license_plate")),
        Errand("order_paint", "Order a bucket of wall paint", ("color", "weight_in_kg", "city")),
        Errand("join_gym", "Sign me up at the gym", ("plan", "name", "city")),
        Errand("book_car_wash", "Book a car wash", ("license_plate", "weekday", "time")),
    ),
    Split.VALIDATION: (
        Errand("hire_babysitter", "Hire a babysitter", ("weekday", "time", "length_in_minutes")),
        Errand("order_ice_cream", "Order ice cream", ("flavour", "weight_in_kg", "name")),
        Errand("book_airport_taxi", "Book a taxi from the airport", ("destination", "number_of_people", "time")),
        Errand("extend_hotel", "Extend my hotel stay", ("number_of_nights", "room", "name")),
    ),
    Split.HELDOUT: (
        Errand("book_museum_tour", "Book a museum tour", ("language", "number_of_people", "weekday")),
        Errand("return_item", "Return something I bought", ("order_number", "color", "city")),
        Errand("book_flight", "Book a flight", ("destination", "weekday", "name")),
        Errand("order_coffee_beans", "Order coffee beans", ("flavour", "weight_in_kg", "recipient")),
        Errand("book_pet_hotel", "Book the pet hotel", ("kind_of_pet", "number_of_nights", "name")),
        Errand("book_studio", "Book a music studio", ("room", "length_in_minutes", "weekday")),
        Errand("print_booklet", "Print my booklet", ("number_of_copies", "language", "time")),
        Errand("rent_van", "Rent a van", ("city", "time", "plan")),
    ),
}  # fmt: skip
