"""engine.synthesis.values.matching: a value is found in prose in any form, and not in another value."""

import pytest

from engine.schema.patterns import search
from engine.synthesis.values.matching import spoken_pattern


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (12, "It is 12."),
        (12, "twelve euros"),
        (84.5, "total: 84.5."),
        (84.5, "It comes to €84.50, all in"),
        ("2027-05-14", "on May 14th"),
        ("2027-05-14", "It comes on 14 May 2027."),
        ("15:00", "at 3 pm"),
        ("P-318", "your order (p-318)"),
        ("Adum Hall", "the ADUM HALL, then"),
        ("Zoë", "for Zoe"),
    ],
)
def test_found(value, text):
    """In any case, before any mark, without its accents."""
    assert search(f"(?i){spoken_pattern(value)}")(text)


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (12, "It is 112."),
        (12, "It is 12.50."),
        (12, "It is 120."),
        (84.5, "84.55"),
        ("2027-05-14", "on May 15th"),
        ("2027-05-01", "on May 14"),
        ("15:00", "at 5:00 pm"),
        ("P-318", "P-3180"),
        ("Ann", "Anna"),
    ],
)
def test_not_found(value, text):
    """A part of another word or number is another value."""
    assert not search(f"(?i){spoken_pattern(value)}")(text)
