"""What is wrong with a check of a pack: found at load, so that no episode meets it for the first time."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import NamedTuple

from engine.schema.patterns import search
from engine.schema.validate import argument_problems
from engine.types import Json


class Names(NamedTuple):
    """The tools and facts that a check may name, and where it stands."""

    tools: frozenset[str]
    facts: frozenset[str]
    ordered: bool = False
    """Whether a `before` is around the check."""


class CheckProblem(NamedTuple):
    """Where in a check, and the reason."""

    path: str
    reason: str


_Found = Iterator[CheckProblem]


def check_problems(check: Json, tools: frozenset[str], facts: frozenset[str]) -> Iterator[CheckProblem]:
    """Every reason for which a check is refused."""
    return _check(check, Names(tools, facts), "")


def _check(check: Json, names: Names, path: str) -> _Found:
    if not isinstance(check, Mapping) or len(check) != 1:
        yield CheckProblem(path, f"a check is an object with one key of {', '.join(_LEAVES)}")
        return
    name, body = next(iter(check.items()))
    if name not in _LEAVES:
        yield CheckProblem(path, f"unknown check {name!r}; known: {', '.join(_LEAVES)}")
        return
    yield from _LEAVES[name](body, names, f"{path}.{name}")


def _called(body: Json, names: Names, path: str) -> _Found:
    if not isinstance(body, Mapping) or "tool" not in body or not body.keys() <= {"tool", "arguments", "ok"}:
        yield CheckProblem(path, "takes {tool, arguments?, ok?}")
        return
    if not isinstance(body["tool"], str) or body["tool"] not in names.tools:
        yield CheckProblem(f"{path}.tool", f"the task has no tool {body['tool']!r}")
    if "ok" in body and not isinstance(body["ok"], bool):
        yield CheckProblem(f"{path}.ok", "must be true or false")
    for where, reason in argument_problems(body.get("arguments", {})):
        yield CheckProblem(f"{path}.arguments.{where}", reason)


def _revealed(body: Json, names: Names, path: str) -> _Found:
    if not isinstance(body, str) or body not in names.facts:
        yield CheckProblem(path, f"the user has no fact {body!r}")


def _matches(body: Json, _names: Names, path: str) -> _Found:
    if not isinstance(body, Mapping) or body.keys() != {"matches"} or not isinstance(body["matches"], str):
        yield CheckProblem(path, 'takes {"matches": "pattern"}')
        return
    try:
        search(body["matches"])
    except ValueError as error:
        yield CheckProblem(f"{path}.matches", str(error))


def _several(body: Json, names: Names, path: str, count: int | None = None) -> _Found:
    if not isinstance(body, list) or not body or (count is not None and len(body) != count):
        yield CheckProblem(path, f"takes a list of {'at least one check' if count is None else f'{count} checks'}")
        return
    for index, inner in enumerate(body):
        yield from _check(inner, names, f"{path}[{index}]")


def _before(body: Json, names: Names, path: str) -> _Found:
    yield from _several(body, names._replace(ordered=True), path, 2)


def _not(body: Json, names: Names, path: str) -> _Found:
    if names.ordered:
        yield CheckProblem(path, "what did not happen has no place in an order: take it out of the `before`")
    yield from _check(body, names, path)


_LEAVES: Mapping[str, Callable[[Json, Names, str], _Found]] = {
    "called": _called,
    "revealed": _revealed,
    "said": _matches,
    "answered": _matches,
    "before": _before,
    "all": _several,
    "any": _several,
    "not": _not,
}
