"""Expressions of a draft: what stands in a state, in arguments, in an answer, in a condition.

Any JSON is one. In its texts, names of members included, ``${…}`` refers to a value::

    ${day}            a fact or a public value; a text that is one reference keeps the type
    ${day.wrong}      what somebody who does not ask would take
    ${day|words}      how a person says it
    ${look/price}     what a step's tool answered, at a JSON Pointer; ${look} is all of it

An object with one of these keys alone computes::

    add subtract multiply min max     of numbers: {"multiply": ["${stems}", "${look/price}"]}
    days                              from one date to another: {"days": ["${arrival}", "${departure}"]}
    least most                        the name of the least: {"least": {"north": "${a/fee}", "south": "${b/fee}"}}
    pick                              {"pick": {"rows": list, "where": {field: value}, "least": field, "take": field}}

and a condition is one of ``equal``, ``less``, ``at_most`` of two expressions, or ``not`` of a condition. Rows of a
``pick`` are compared with a value, or with a limit, ``{"at_most": value}`` or ``{"at_least": value}``; it takes the
only row that is left, or the one with the least or most of a field. Where two are equally good there is no answer.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import date
from decimal import Decimal
from typing import Any

from engine.schema.canonical import compact, same
from engine.schema.pointer import MissingError, parse_pointer, read_pointer
from engine.schema.templates import fill_template, fill_text, placeholders_in
from engine.types import Json

_REFERENCE = re.compile(r"\$\{([^{}]*)\}")
WRONG, WORDS = ".wrong", "|words"
_NULL = "null"


class ExpressionError(Exception):
    """An expression has no value; the text says why, and what to do."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DraftScope:
    """What references mean at a place of the plan."""

    values: Mapping[str, Json]
    """Facts and public values, with `NAME.wrong` and `NAME|words` beside them."""
    answers: Mapping[str, Json]
    """What tools answered so far, by step."""

    def value(self, reference: str) -> Json:
        """The value of a reference.

        Raises ExpressionError where there is none."""
        step, slash, pointer = reference.partition("/")
        if not slash and reference in self.values:
            return self.values[reference]
        if step not in self.answers:
            known = ", ".join((*self.values, *self.answers)) or "nothing"
            raise ExpressionError(f"${{{reference}}} refers to nothing; known here: {known}")
        try:
            return read_pointer(self.answers[step], parse_pointer(slash + pointer))
        except (MissingError, ValueError):
            said = compact(self.answers[step])
            raise ExpressionError(f"${{{reference}}}: the answer of {step} has no {slash}{pointer}: {said}") from None


def references(expression: Json) -> Iterator[str]:
    """Every reference in an expression."""
    return placeholders_in(expression, _REFERENCE)


def literals(expression: Json) -> Iterator[str | int | float]:
    """Every text and number that an expression says itself; names of members are none."""
    if isinstance(expression, str):
        if not _REFERENCE.search(expression):
            yield expression
    elif isinstance(expression, Mapping):
        inner: Sequence[Json] = [*expression.values()]
        if _operation(expression) == "pick":
            pick = expression["pick"]
            inner = [pick.get("rows"), *_mapping(pick.get("where", {}), "where").values()]
        for value in inner:
            yield from literals(value)
    elif isinstance(expression, list | tuple):
        for value in expression:
            yield from literals(value)
    elif isinstance(expression, int | float) and not isinstance(expression, bool):
        yield expression


def filled(template: Json, scope: DraftScope) -> Json:
    """A template with its references replaced; nothing is computed.

    Raises ExpressionError."""
    return fill_template(template, _REFERENCE, scope.value, null=_NULL)


def filled_text(template: str, scope: DraftScope) -> str:
    """A text with its references replaced by their texts.

    Raises ExpressionError."""
    return fill_text(template, _REFERENCE, scope.value, null=_NULL)


# --- computing -------------------------------------------------------------------------------------------------------


def evaluated(expression: Json, scope: DraftScope) -> Json:
    """The value of an expression.

    Raises ExpressionError."""
    if isinstance(expression, Mapping):
        operation = _operation(expression)
        if operation is not None:
            return _OPERATIONS[operation](expression[operation], scope)
        return {filled_text(name, scope): evaluated(inner, scope) for name, inner in expression.items()}
    if isinstance(expression, list | tuple):
        return [evaluated(inner, scope) for inner in expression]
    return filled(expression, scope)


def holds(condition: Mapping[str, Json], scope: DraftScope) -> bool:
    """Whether a condition is true.

    Raises ExpressionError."""
    if len(condition) == 1:
        [(name, body)] = condition.items()
        if name == "not" and isinstance(body, Mapping):
            return not holds(body, scope)
        if name in _COMPARISONS:
            left, right = _operands(body, scope, name, 2)
            return _COMPARISONS[name](left, right)
    raise ExpressionError(f"{compact(dict(condition))} is no condition: one key of {', '.join((*_COMPARISONS, 'not'))}")


def _operation(expression: Mapping[str, Json]) -> str | None:
    name = next(iter(expression), "")
    return name if len(expression) == 1 and name in _OPERATIONS else None


def _operands(body: Json, scope: DraftScope, name: str, count: int | None = None) -> list[Json]:
    """The values of a list of expressions."""
    if not isinstance(body, list | tuple) or not body or (count is not None and len(body) != count):
        raise ExpressionError(f"{name} takes a list of {count or 'at least one'} expressions, not {compact(body)}")
    return [evaluated(one, scope) for one in body]


def _number(value: Json, name: str) -> Decimal:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ExpressionError(f"{name} takes numbers, not {compact(value)}")
    return Decimal(str(value))


def _plain(number: Decimal) -> int | float:
    return int(number) if number == number.to_integral_value() else float(number)


def _arithmetic(name: str, compute: Callable[[Sequence[Decimal]], Decimal]) -> Callable[[Json, DraftScope], Json]:
    def operation(body: Json, scope: DraftScope) -> Json:
        return _plain(compute([_number(value, name) for value in _operands(body, scope, name)]))

    return operation


def _product(numbers: Sequence[Decimal]) -> Decimal:
    product = Decimal(1)
    for number in numbers:
        product *= number
    return product


def _days(body: Json, scope: DraftScope) -> Json:
    first, last = _operands(body, scope, "days", 2)
    try:
        return (date.fromisoformat(str(last)) - date.fromisoformat(str(first))).days
    except ValueError as error:
        raise ExpressionError(f"days takes two dates such as 2027-05-14: {error}") from None


def _best(name: str) -> Callable[[Json, DraftScope], Json]:
    """The name of the least or most of some numbers."""

    def operation(body: Json, scope: DraftScope) -> Json:
        numbers = {label: _number(evaluated(one, scope), name) for label, one in _mapping(body, name).items()}
        return filled(_only(numbers, name), scope)

    return operation


def _only(numbers: Mapping[Any, Decimal], name: str) -> Any:
    """The key of the least or most of some numbers, where no other has as much."""
    if not numbers:
        raise ExpressionError(f"{name}: there is nothing to choose from")
    best = (min if name == "least" else max)(numbers.values())
    found = [key for key, number in numbers.items() if number == best]
    if len(found) > 1:
        raise ExpressionError(f"{name}: {len(found)} are equally good ({_plain(best)}); make one of them better")
    return found[0]


def _pick(body: Json, scope: DraftScope) -> Json:
    given = _mapping(body, "pick")
    if given.keys() - {"rows", "where", "least", "most", "take"} or not {"rows", "take"} <= given.keys():
        raise ExpressionError("pick takes rows, take, and where, least or most")
    rows = evaluated(given["rows"], scope)
    if not isinstance(rows, list) or not all(isinstance(row, Mapping) for row in rows):
        raise ExpressionError(f"pick: rows is no list of objects: {compact(rows)}")
    where = _mapping(given.get("where", {}), "where")
    left = [row for row in rows if all(_fits(row, field, wanted, scope) for field, wanted in where.items())]
    order = next((name for name in ("least", "most") if name in given), None)
    if order is not None:
        row = left[_only({at: _number(row.get(given[order]), order) for at, row in enumerate(left)}, order)]
    elif len(left) == 1:
        row = left[0]
    else:
        raise ExpressionError(f"pick: {len(left)} of {len(rows)} rows fit; exactly one must, or give least or most")
    if given["take"] not in row:
        raise ExpressionError(f"pick: the row has no {given['take']}: {compact(row)}")
    return row[given["take"]]


def _fits(row: Mapping[str, Json], field: str, wanted: Json, scope: DraftScope) -> bool:
    if field not in row:
        raise ExpressionError(f"pick: a row has no {field}: {compact(dict(row))}")
    if isinstance(wanted, Mapping) and len(wanted) == 1 and wanted.keys() <= {"at_most", "at_least"}:
        [(side, limit)] = wanted.items()
        pair = (row[field], evaluated(limit, scope))
        return _at_most(*(pair if side == "at_most" else reversed(pair)))
    return same(row[field], evaluated(wanted, scope))


def _mapping(value: Json, name: str) -> Mapping[str, Json]:
    if not isinstance(value, Mapping):
        raise ExpressionError(f"{name} takes an object, not {compact(value)}")
    return value


def _ordered(left: Json, right: Json) -> tuple[Any, Any]:
    """Two numbers, or two texts: dates and times are ordered as texts."""
    if isinstance(left, str) and isinstance(right, str):
        return left, right
    return _number(left, "a comparison"), _number(right, "a comparison")


def _at_most(left: Json, right: Json) -> bool:
    first, second = _ordered(left, right)
    return bool(first <= second)


_COMPARISONS: Mapping[str, Callable[[Json, Json], bool]] = {
    "equal": same,
    "less": lambda left, right: not _at_most(right, left),
    "at_most": _at_most,
}
_OPERATIONS: Mapping[str, Callable[[Json, DraftScope], Json]] = {
    "add": _arithmetic("add", lambda numbers: sum(numbers, Decimal(0))),
    "subtract": _arithmetic("subtract", lambda numbers: numbers[0] - sum(numbers[1:], Decimal(0))),
    "multiply": _arithmetic("multiply", _product),
    "min": _arithmetic("min", min),
    "max": _arithmetic("max", max),
    "days": _days,
    "least": _best("least"),
    "most": _best("most"),
    "pick": _pick,
}
