"""Personas: a JSON object each, `{"persona": …, "id"?, "trade"?}`, or a line of plain text each."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping

import orjson

from engine.importing.format import UnreadableError
from engine.importing.report import Note
from engine.packs.problems import TOOL_NAME, Found
from engine.synthesis.seeds.seed import Seed, persona_seed
from engine.types import Json

Personas = tuple[tuple[Seed, ...], tuple[Note, ...]]

_KNOWN = ("persona", "id", "trade")
_MARKDOWN = re.compile(r"#{1,6} |[-*+>] |```|\|.*\||\d+[.)] ")
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f]")
_CONTROLLED = ("has control characters", "take them out; a persona is text")
_OBJECT = '{"persona": "…"}, and perhaps "id" and "trade"'


def numbered_lines(text: str) -> Iterator[tuple[str, str]]:
    """The lines that are not blank, each with its place: `line 3`."""
    for number, line in enumerate(text.split("\n"), 1):
        if line.strip():
            yield f"line {number}", line.strip()


def personas_of_lines(text: str) -> Personas:
    """Personas of JSON Lines.

    Raises UnreadableError naming every line that is wrong."""
    values: list[tuple[str, Json]] = []
    found: list[Found] = []
    for place, line in numbered_lines(text):
        try:
            values.append((place, orjson.loads(line)))
        except orjson.JSONDecodeError as error:
            found.append(Found(place, f"not JSON: {error.msg}", "one JSON object a line"))
    if found:
        raise UnreadableError(found)
    return personas_of_objects(values)


def personas_of_objects(values: Iterable[tuple[str, Json]]) -> Personas:
    """Personas of objects with their places.

    Raises UnreadableError naming every object that is wrong."""
    seeds: list[tuple[str, Seed]] = []
    found: list[Found] = []
    unknown: Counter[str] = Counter()
    for place, value in values:
        problems = list(_problems(place, value))
        found += problems
        if not problems:
            seeds.append((place, persona_seed(*(_text(value, name) for name in ("persona", "trade", "id")))))
            unknown.update(name for name in value if name not in _KNOWN)
    ignored = [Note(name, "is no part of a persona", kept=False, count=n) for name, n in unknown.items()]
    kept, twice = _distinct(seeds, found)
    if found:
        raise UnreadableError(found)
    return kept, (*twice, *ignored)


def personas_of_text(text: str) -> Personas:
    """Personas of plain text, one a line.

    Raises UnreadableError for a text that is no list of personas."""
    lines = list(numbered_lines(text))
    for place, line in lines:
        if _MARKDOWN.match(line):
            found = Found(
                place,
                "looks like Markdown, not like a list of personas",
                "write one persona a line, without marks; the rules of a domain are given with --policy",
            )
            raise UnreadableError([found])
        if _CONTROL.search(line):
            raise UnreadableError([Found(place, *_CONTROLLED)])
    return _distinct([(place, persona_seed(line)) for place, line in lines], [])


def _distinct(seeds: list[tuple[str, Seed]], found: list[Found]) -> Personas:
    """The seeds, each once; an id that two different personas have is added to what is wrong."""
    first: dict[str, tuple[str, Seed]] = {}
    twice: list[Note] = []
    for place, seed in seeds:
        earlier, known = first.setdefault(seed.id, (place, seed))
        if known != seed:
            found.append(
                Found(f"{place}.id" if place else "id", f"{seed.id!r} is used in {earlier} too", "ids are unique")
            )
        elif earlier != place:
            twice.append(Note(place, f"is the persona of {earlier} once more", kept=False))
    return tuple(seed for _, seed in first.values()), tuple(twice)


def _problems(place: str, value: Json) -> Iterator[Found]:
    if not isinstance(value, Mapping) or "persona" not in value:
        yield Found(place, "is no persona", f"one object each: {_OBJECT}")
        return
    for name in _KNOWN:
        body = value.get(name, "")
        if not isinstance(body, str):
            yield Found(f"{place}.{name}", "is no text", f"write {_OBJECT}")
        elif name == "persona" and not body.strip():
            yield Found(f"{place}.persona", "is empty", "one or two sentences about a person")
        elif name == "id" and body and not TOOL_NAME.fullmatch(body):
            yield Found(
                f"{place}.id", f"{body!r} is no id", "at most 64 letters, digits, '_', '-', '.'; or leave it out"
            )
        elif _CONTROL.search(" ".join(body.split())):
            yield Found(f"{place}.{name}", *_CONTROLLED)


def _text(value: Mapping[str, Json], name: str) -> str:
    return " ".join(str(value.get(name, "")).split())
