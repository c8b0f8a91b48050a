"""engine.synthesis.drafts.expressions: what an expression is worth, and why another has no value."""

import pytest

from engine.synthesis.drafts.expressions import (
    DraftScope,
    ExpressionError,
    evaluated,
    filled,
    holds,
    literals,
    references,
)

ROWS = [{"name": "a", "fee": 7.25, "day": "2027-05-14"}, {"name": "b", "fee": 9, "day": "2027-05-17"}]
SCOPE = DraftScope(
    values={"day": "2027-05-14", "day.wrong": "2027-05-17", "day|words": "on the 14th", "count": 3, "limit": 9},
    answers={"look": {"rows": ROWS, "price": 2.5, "deep": {"a/b": [1, 2]}}},
)
PICK = {"rows": "${look/rows}", "take": "name"}


@pytest.mark.parametrize(
    ("expression", "value"),
    [
        ("${count}", 3),
        ("${count} on ${day|words}", "3 on on the 14th"),
        ("${look/deep/a~1b/1}", 2),
        ("${look/deep}", {"a/b": [1, 2]}),
        ({"${day}": ["${day.wrong}", True, None]}, {"2027-05-14": ["2027-05-17", True, None]}),
        ("{argument}", "{argument}"),
        ({"add": [0.1, 0.2]}, 0.3),
        ({"subtract": [10, "${count}", 2]}, 5),
        ({"multiply": ["${count}", "${look/price}", 2]}, 15),
        ({"min": [4, "${count}"]}, 3),
        ({"max": [4, "${count}"]}, 4),
        ({"days": ["${day}", "${day.wrong}"]}, 3),
        ({"least": {"north": "${look/price}", "south": 2}}, "south"),
        ({"most": {"north": "${look/price}", "south": 2}}, "north"),
        ({"pick": {**PICK, "least": "fee"}}, "a"),
        ({"pick": {**PICK, "most": "fee"}}, "b"),
        ({"pick": {**PICK, "where": {"day": "${day.wrong}"}}}, "b"),
        ({"pick": {**PICK, "where": {"fee": {"at_most": 8}}}}, "a"),
        ({"pick": {**PICK, "where": {"fee": {"at_least": "${limit}"}}, "take": "fee"}}, 9),
        ({"add": 1, "more": 2}, {"add": 1, "more": 2}),
    ],
)
def test_values(expression, value):
    """Whole numbers stay whole, money stays exact, and what is no expression stays as it is."""
    assert evaluated(expression, SCOPE) == value


@pytest.mark.parametrize(
    ("expression", "reason"),
    [
        ("${dey}", "refers to nothing; known here: day, day.wrong, day|words, count, limit, look"),
        ("${look/rooms}", "the answer of look has no /rooms"),
        ({"add": ["${day}", 1]}, 'add takes numbers, not "2027-05-14"'),
        ({"add": [True, 1]}, "add takes numbers, not true"),
        ({"add": []}, "add takes a list of at least one expressions"),
        ({"days": ["${day}"]}, "days takes a list of 2 expressions"),
        ({"days": ["${day}", "soon"]}, "days takes two dates"),
        ({"least": {"a": 1, "b": 1}}, "least: 2 are equally good (1)"),
        ({"least": {}}, "there is nothing to choose from"),
        ({"pick": PICK}, "2 of 2 rows fit; exactly one must"),
        ({"pick": {**PICK, "where": {"name": "c"}}}, "0 of 2 rows fit"),
        ({"pick": {**PICK, "where": {"colour": "c"}}}, "a row has no colour"),
        ({"pick": {**PICK, "take": "colour", "least": "fee"}}, "the row has no colour"),
        ({"pick": {**PICK, "rows": "${look/price}"}}, "rows is no list of objects: 2.5"),
        ({"pick": {"rows": []}}, "pick takes rows, take, and where, least or most"),
        ({"pick": {**PICK, "where": 1}}, "where takes an object, not 1"),
    ],
)
def test_what_has_no_value_says_why(expression, reason):
    """Once, with what was there instead."""
    with pytest.raises(ExpressionError) as raised:
        evaluated(expression, SCOPE)
    assert reason in str(raised.value)


@pytest.mark.parametrize(
    ("condition", "true"),
    [
        ({"equal": ["${count}", 3]}, True),
        ({"equal": ["${count}", 3.0]}, True),
        ({"less": ["${count}", 3]}, False),
        ({"at_most": ["${count}", 3]}, True),
        ({"less": ["${day}", "${day.wrong}"]}, True),
        ({"not": {"equal": ["${day}", "${day.wrong}"]}}, True),
    ],
)
def test_conditions(condition, true):
    """Numbers by their size, dates as texts."""
    assert holds(condition, SCOPE) is true


@pytest.mark.parametrize("condition", [{}, {"more": [1, 2]}, {"equal": [1]}, {"less": ["a", 1]}, {"not": 1}])
def test_what_is_no_condition(condition):
    """It is neither true nor false."""
    with pytest.raises(ExpressionError):
        holds(condition, SCOPE)


def test_what_an_expression_names_and_says():
    """References wherever they stand; literals that a call would have: no fields of rows."""
    expression = {"a": "${x/y}", "${z}": [{"pick": {"rows": "${r/s}", "where": {"day": "Monday"}, "take": "id"}}, 4]}
    assert sorted(references(expression)) == ["r/s", "x/y", "z"]
    assert list(literals(expression)) == ["Monday", 4]


def test_a_template_is_filled_and_not_computed():
    """A state may have a member of any name."""
    assert filled({"add": ["${count}"]}, SCOPE) == {"add": [3]}
