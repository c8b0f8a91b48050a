"""Whether a text gives a value away."""

import pytest

from engine.synthesis.admission.spellings import normalised, says


@pytest.mark.parametrize(
    ("value", "text"),
    [
        ("Trondheim", "to TRONDHEIM, please"),
        ("manual therapy", "Manual\n  therapy."),
        ("Crème brûlée", "cre\u0300me bru\u0302le\u0301e"),
        (38, "for 38."),
        (38, "thirty-eight people"),
        (112, "a hundred and twelve, or one hundred and twelve"),
        (2000, "2,000 of them"),
        (5.0, "five"),
        ("12", "twelve"),
        ("2027-05-14", "on the 14th of May"),
        ("2027-05-14", "May 14, 2027"),
        ("2027-05-14", "14.05.2027"),
        ("2027-05-14", "5/14/2027"),
        ("2027-05-14", "at 2027-05-14T10:00:00"),
        ("2027-05-14", '{"day":"2027-05-14"}'),
        ("14:30", "at 2:30 pm"),
        ("14:30", "2.30pm"),
        ("15:00", "three in the afternoon"),
        ("15:00", "by 3 o'clock"),
        ("RF-20931", "the slip RF 20931 or rf20931"),
        (["nuts", "milk"], "no milk, no nuts"),
    ],
)
def test_a_value_is_found_in_whatever_spelling(value: object, text: str):
    """Exact, folded, in words, as a date or a time."""
    assert says(normalised(text), value)


@pytest.mark.parametrize(
    ("value", "text"),
    [
        ("Oslo", "Osloer Platz"),
        (38, "NR-38, 38.5, 2038-01-01, 138"),
        (1, "one of these"),
        (14, "on 2027-05-14 at 14:30"),
        ("2027-05-14", "2027-05-15, 13 May"),
        ("2027-02-30", "30 February"),
        ("14:30", "1430 euros, 14 and 30"),
        (["nuts", "milk"], "no milk"),
        ([], "anything"),
        (True, "true yes True"),
        (None, "null None"),
        ("...", "... and so on"),
        ({"a": "b"}, "a b"),
    ],
)
def test_another_value_is_not(value: object, text: str):
    """Parts of words, codes, dates and numbers; what no text says."""
    assert not says(normalised(text), value)
