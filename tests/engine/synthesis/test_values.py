"""engine.synthesis.values: what each type accepts, draws and says, and which types there are not."""

import unicodedata
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.schema.canonical import canonical
from engine.schema.patterns import search
from engine.synthesis.values.kinds import EXAMPLES, value_type
from engine.synthesis.values.typed_value import NoOtherValueError

BOUNDED = ("date[2027-05-01,2027-05-31]", "time[09:00,17:30]", "money[5,49.50]", "code[[A-HJ-NP-Z]{3}-\\d{4}]")
DRAWN = tuple(example for example in EXAMPLES if example != "fixed") + BOUNDED


# --- drawing --------------------------------------------------------------------------------------------------------


@given(st.sampled_from(DRAWN), st.integers())
def test_what_is_drawn_is_of_its_type(example, seed):
    """It equals an argument as it is, and is written as JSON has it among other forms."""
    kind = value_type(example)
    value = kind.draw(Random(seed))
    assert kind.accepts(value)
    assert canonical(value) == value
    assert str(value) in kind.spoken(value) or f"{value:.2f}" in kind.spoken(value)


@given(st.sampled_from(DRAWN), st.integers(), st.randoms())
def test_a_seed_decides_what_is_drawn(example, seed, order):
    """The order of what is to be avoided does not."""
    kind = value_type(example)
    avoid = [kind.draw(Random(seed + 1)), kind.draw(Random(seed + 2))]
    drawn = _drawn_or_none(kind, seed, avoid)
    order.shuffle(avoid)
    assert drawn == _drawn_or_none(kind, seed, avoid)


def _drawn_or_none(kind, seed, avoid):
    try:
        return kind.draw(Random(seed), avoid)
    except NoOtherValueError:
        return None


@given(st.sampled_from(DRAWN), st.integers())
def test_drawn_values_share_no_form(example, seed):
    """However many there are already: an answer with one of them is not one with another."""
    kind, random = value_type(example), Random(seed)
    drawn, said = [], set()
    for _ in range(3):
        try:
            value = kind.draw(random, drawn)
        except NoOtherValueError:
            assert example.startswith("choice")
            break
        forms = {form.casefold() for form in kind.spoken(value)}
        assert not forms & said
        drawn.append(value)
        said |= forms


@pytest.mark.parametrize(
    ("example", "count"),
    [("integer[3,5]", 3), ("choice[a|b]", 2), ("code[[AB]\\d]", 20), ("date[2027-05-30,2027-06-02]", 4), ("fixed", 0)],
)
def test_every_value_of_a_small_type_is_drawn_before_there_is_no_other(example, count):
    """And then a sentence says so."""
    kind, random = value_type(example), Random(0)
    drawn = []
    for _ in range(count):
        drawn.append(kind.draw(random, drawn))
    with pytest.raises(NoOtherValueError, match="has no value besides"):
        kind.draw(random, drawn)


def test_a_time_of_the_other_half_of_the_day_is_another_value_but_not_drawn():
    """`3:00` is either, and `half past three` too."""
    kind = value_type("time[03:00,15:00]")
    assert {kind.draw(Random(seed), ["15:00"]) for seed in range(300)} >= {"03:15", "14:45"}
    assert "03:00" not in {kind.draw(Random(seed), ["15:00"]) for seed in range(300)}


def test_values_of_other_types_are_avoided_as_they_are_written():
    """Lists and objects among them."""
    kind = value_type("integer[1,3]")
    assert {kind.draw(Random(seed), ["1", "three", [2], {"a": 2}]) for seed in range(40)} == {2}


def test_names_are_of_several_languages():
    """In NFC, trimmed, on one line; some with accents."""
    for name in ("person", "city", "street", "organisation"):
        values = [value_type(name).draw(Random(seed)) for seed in range(60)]
        assert len(set(values)) > 50
        assert any(not value.isascii() for value in values)
        assert all(value == unicodedata.normalize("NFC", value.strip()) and value.isprintable() for value in values)


def test_round_values_are_drawn_where_there_are_enough():
    """Quarters of an hour, halves of a unit; any value between narrow bounds."""
    assert {value_type("time").draw(Random(seed))[3:] for seed in range(100)} == {"00", "15", "30", "45"}
    assert {value_type("money").draw(Random(seed)) * 2 % 1 for seed in range(100)} == {0}
    assert {value_type("money[1,1.04]").draw(Random(seed)) for seed in range(100)} == {1, 1.01, 1.02, 1.03, 1.04}


# --- accepting ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("example", "accepted", "refused"),
    [
        (
            "date",
            ["2027-05-14", "1961-02-28", "2028-02-29"],
            ["2027-02-29", "14 May", "20270514", "٢٠٢٧-05-14", 7, None],
        ),
        ("date[2027-05-01,2027-05-31]", ["2027-05-01", "2027-05-31"], ["2027-06-01"]),
        ("time", ["00:00", "23:59"], ["24:00", "9:00", "15:60", "15:00:00", 15]),
        ("time[09:00,17:30]", ["17:30"], ["17:31"]),
        ("person", ["Ines", "José Ñandú"], ["", " Ines", "47", "a\nb", "I\u0301nes", "x" * 121, 7]),
        ("integer[-2,20]", [-2, 20], [21, 7.5, True, "7", None]),
        ("money", [0, 12, 12.5, 0.1, 1234.56], [-1, 12.505, True, "12.50", float("nan"), float("inf"), 10**13]),
        ("money[5,49.50]", [5, 49.5], [4.99, 49.51]),
        ("code[B-\\d{2}]", ["B-47"], ["b-47", "B-4", "B-477", "B-٤٧", 47]),
        ("choice[small|two seats]", ["two seats"], ["large", 1, ["small"]]),
        ("fixed", ["anything", 7, [1, 2], None], []),
    ],
)
def test_a_type_accepts_its_values_alone(example, accepted, refused):
    """Those of JSON that look alike are others."""
    kind = value_type(example)
    assert [value for value in accepted if not kind.accepts(value)] == []
    assert [value for value in refused if kind.accepts(value)] == []


@given(st.sampled_from(["B-\\d{2}", "[A-HJ-NP-Z]{3}\\d{4}", "\\[x\\]{2}[a.-]", "[\\d_ ]{1}Q"]), st.integers())
def test_codes_are_those_of_the_pattern_to_re2_too(pattern, seed):
    """A tool's schema may have the same pattern."""
    kind = value_type(f"code[{pattern}]") if not pattern.startswith("[\\d_ ]") else value_type("code[Q[\\d_ ]Q]")
    whole = pattern if not pattern.startswith("[\\d_ ]") else "Q[\\d_ ]Q"
    assert search(f"^{whole}$")(kind.draw(Random(seed)))


# --- saying ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("example", "value", "said"),
    [
        (
            "date",
            "2027-05-14",
            "2027-05-14|14 May 2027|May 14, 2027|14th of May|May 14|May 14th|14.05.2027|14.5.2027|5/14/2027|14/05/2027",
        ),
        ("date", "2027-09-02", "2 Sep 2027|Sept 2|2nd of September|September 2nd|02.09.2027"),
        ("date", "2027-11-13", "13th November|November 13th"),
        (
            "time",
            "15:00",
            "15:00|3 pm|3pm|3:00 pm|3 p.m.|three in the afternoon|3 in the afternoon|three o'clock|three pm|3:00",
        ),
        ("time", "15:30", "3:30 pm|half past three|three thirty|15:30|3.30 pm"),
        ("time", "15:45", "quarter to four|three forty-five"),
        ("time", "09:05", "9:05|09:05|five past nine|nine oh five|9:05 am"),
        ("time", "23:40", "twenty to twelve|11:40 pm"),
        ("time", "12:00", "noon|12 pm|midday"),
        ("time", "00:00", "midnight|12 am|0:00"),
        ("integer[1,2000]", 12, "12|twelve|a dozen"),
        ("integer[1,2000]", 25, "twenty-five|twenty five"),
        ("integer[1,2000]", 1250, "1250|1,250|1.250|1 250"),
        ("integer[-20,20]", -7, "-7|minus seven"),
        ("money", 12.5, "12.50|12,50|12.5|$12.50|€12,50|£12.50|twelve fifty"),
        ("money", 12, "12|12.00|12,00|$12|twelve"),
        ("money", 1250.05, "1250.05|1,250.05|1.250,05|1 250,05|$1,250.05"),
        ("person", "Zoë Łącka", "Zoë Łącka|Zoe Lacka"),
        ("code[B-\\d{2}]", "B-47", "B-47|B47|B 47"),
        ("choice[two_seater|bike]", "two_seater", "two_seater|two seater"),
        ("fixed", "2027-05-14", "14 May 2027"),
        ("fixed", "15:30", "half past three"),
        ("fixed", 12, "twelve"),
        ("fixed", 12.5, "$12.50"),
        ("fixed", ["red", "blue"], "red, blue"),
        ("fixed", True, "true"),
    ],
)
def test_a_value_is_written_in_these_forms(example, value, said):
    """Each once; the first is how JSON has it."""
    forms = value_type(example).spoken(value)
    assert [form for form in said.split("|") if form not in forms] == []
    assert len(set(forms)) == len(forms)


@pytest.mark.parametrize(
    ("example", "value", "others"),
    [
        ("date", "2027-05-14", "14|May|2027|May 1|13 May"),
        ("time", "15:30", "15|3|3 pm|half past two|3:30 am"),
        ("time", "15:00", "3|15|three in the morning|3 am"),
        ("money", 1250.5, "1,250,50|1250|1,250"),
        ("integer[1,2000]", 1250, "250|1"),
    ],
)
def test_a_part_of_a_value_is_no_form_of_it(example, value, others):
    """Nor is another value's."""
    assert set(others.split("|")) & set(value_type(example).spoken(value)) == set()


@given(
    st.sampled_from([example for example in DRAWN if not example.startswith("choice")]), st.integers(), st.integers()
)
def test_two_values_without_a_common_form_are_two(example, one, other):
    """Saying a value never says less than JSON does: equal forms, equal values."""
    kind = value_type(example)
    first, second = kind.draw(Random(one)), kind.draw(Random(other))
    assert (first == second) == (kind.spoken(first) == kind.spoken(second))


# --- what is no type ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("day", "'day' is no type of value; one of date, time, person, "),
        ("", "'' is no type of value"),
        ("date ", "'date ' is no type of value"),
        ("person[x]", "person[x]: person takes nothing in brackets; write person"),
        ("fixed[1]", "fixed[1]: fixed takes nothing in brackets"),
        ("integer", "integer[]: give the least and the greatest value, as in integer[1,20]"),
        ("integer[1]", "integer[1]: give the least and the greatest"),
        ("integer[1,two]", "integer[1,two]: give the least and the greatest"),
        ("integer[1,99999999999999999999]", "give the least and the greatest"),
        ("integer[1,9223372036854775808]", "give the least and the greatest"),
        ("integer[20,1]", "integer[20,1]: the first bound is beyond the second; swap them"),
        ("date[2027-02-29,2027-03-01]", "as in date[2027-05-01,2027-06-30]"),
        ("time[17:00,9:00]", "as in time[09:00,17:30]"),
        ("money[1.505,2]", "as in money[5,49.50]"),
        ("choice[]", "choice[]: give at least two different texts"),
        ("choice[a|a]", "choice[a|a]: give at least two different texts"),
        ("choice[a|]", "choice[a|]: give at least two different texts"),
        ("code", r"code: give a pattern, as in code[B-\d{2}]"),
        ("code[A+]", "code[A+]: '+' at character 2 is not supported"),
        ("code[[^A]]", "code[[^A]]: '^' at character 2 is not supported"),
        ("code[[A]", "'[' at character 1 is not supported"),
        ("code[[Z-A]]", "'Z' at character 2 is not supported"),
        (r"code[\w]", r"'\\' at character 1 is not supported"),
        ("code[A{2,3}]", "'{' at character 2 is not supported"),
        ("code[é]", "'é' at character 1 is not supported"),
        ("code[A{65}]", "a code has from 1 to 64 characters, not 65"),
        ("code[A ]", "begins and ends with no space"),
    ],
)
def test_what_is_no_type_is_refused_with_a_sentence(text, sentence):
    """That says where, and how it is written."""
    with pytest.raises(ValueError) as refused:  # noqa: PT011 - the whole message is compared
        value_type(text)
    assert sentence in str(refused.value)


@given(st.text(max_size=30) | st.from_regex(r"(code|integer|date|choice|money)\[.{0,20}\]", fullmatch=True))
def test_no_text_of_a_teacher_does_more_harm_than_a_sentence(text):
    """Whatever it is."""
    try:
        kind = value_type(text)
    except ValueError as refused:
        assert str(refused)  # noqa: PT017 - most texts are refused
    else:
        drawn = _drawn_or_none(kind, 0, [])
        assert drawn is None or kind.accepts(drawn)
