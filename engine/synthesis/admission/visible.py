"""What an agent can see without asking: what it is shown, and the closure of reads whose arguments it has seen.

A read is found from the state: an agent can name a place of it if each part that an argument gives stands in what it
has seen, is a choice of the tool's parameter, or the index of an array.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import compress, islice
from operator import not_
from typing import Any, NamedTuple

import orjson

from engine.schema.pointer import parse_pointer
from engine.schema.validate import every_schema
from engine.synthesis.admission.draws import drawn_argument
from engine.synthesis.admission.play import ScriptPlayer
from engine.synthesis.admission.spellings import normalised, says
from engine.task import Task, Tool
from engine.types import Json, ToolCall
from engine.world.admission import admit
from engine.world.effects import TEMPLATE_PLACEHOLDER, RefusedError

_MOST_READS = 2000
"""Places of a state that are looked at."""
_SHOWN = frozenset({"description", "title", "default", "const"})
"""Keywords of a schema whose values the agent reads as texts."""

Bound = Mapping[str, Json]
"""Arguments by the name of their parameter."""


class SeenAnswer(NamedTuple):
    """The answer of a call at the start of an episode."""

    call: ToolCall
    content: str
    ok: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Visible:
    """What an agent can see that asks nobody and changes nothing."""

    answers: Sequence[SeenAnswer]
    """Of the reads whose arguments it has seen, in the order in which it can make them."""
    text: str
    """All of it, normalised."""


def texts_shown(task: Task) -> dict[str, str]:
    """The normalised texts that an agent begins with, by their place; an enumeration of several choices is none."""
    tools = {f"tool {tool.name}": " ".join(_texts(tool.function)) for tool in task.tools}
    return {
        place: normalised(text)
        for place, text in {"instruction": task.instruction, "rules": task.rules, **tools}.items()
    }


def _texts(schema: Json) -> Iterator[str]:
    """The names and texts of a function object that say something about values."""
    if isinstance(schema, list):
        for inner in schema:
            yield from _texts(inner)
    elif isinstance(schema, Mapping):
        for name, inner in schema.items():
            if name in _SHOWN or name == "examples" or (name == "enum" and _single(inner)):
                yield orjson.dumps(inner).decode()
            elif name == "properties" and isinstance(inner, Mapping):
                yield from (*inner, *_texts(list(inner.values())))
            elif name == "name":
                yield str(inner)
            else:
                yield from _texts(inner)


def _single(choices: Json) -> bool:
    return isinstance(choices, list) and len(choices) == 1


def choices_of(task: Task) -> Iterator[Sequence[Json]]:
    """The enumerations of the tools' parameters, wherever in them."""
    for tool in task.tools:
        for _, schema in every_schema(tool.parameters):
            if isinstance(choices := schema.get("enum"), list):
                yield choices


# --- reads ----------------------------------------------------------------------------------------------------------


class _Place(NamedTuple):
    """A call that reads something, and the arguments that an agent must have seen in order to make it."""

    call: ToolCall
    needs: Sequence[Json]


def readable_places(task: Task) -> list[_Place]:
    """Every read that the state or a response of the task answers at the start, but for those of which there are more
    than can be looked at."""
    return list(islice(_reads(task), _MOST_READS))


def _reads(task: Task) -> Iterator[_Place]:
    for tool in task.tools:
        if not tool.writes and tool.effect is not None:
            for bound, indices in _found(task.world.state, parse_pointer(tool.effect["read"]), {}, frozenset()):
                yield from _place(task, tool, bound, indices)
    for response in task.world.responses:
        named = task.tool(response.tool)
        if named is not None and not named.writes and not response.after and response.ok:
            yield from _place(task, named, response.arguments, frozenset())


def _found(
    value: Json, tokens: Sequence[str], bound: Bound, indices: frozenset[str]
) -> Iterator[tuple[Bound, frozenset[str]]]:
    """The arguments with which a pointer leads somewhere, and which of them are indices."""
    if not tokens:
        yield bound, indices
        return
    is_list = isinstance(value, list)
    members = enumerate(value) if is_list else value.items() if isinstance(value, Mapping) else ()
    names, pattern = TEMPLATE_PLACEHOLDER.findall(tokens[0]), _pattern(tokens[0])
    for key, inner in members:
        match = pattern.fullmatch(str(key))
        if match is None:
            continue
        given = dict(zip(names, match.groups(), strict=True))
        if all(bound.get(name, said) == said for name, said in given.items()):
            yield from _found(inner, tokens[1:], {**bound, **given}, indices | (given.keys() if is_list else set()))


def _pattern(token: str) -> re.Pattern[str]:
    """What a token of a pointer's template can be, with a group for each placeholder."""
    literals = TEMPLATE_PLACEHOLDER.split(token)[::2]
    return re.compile("(.+?)".join(map(re.escape, literals)), re.DOTALL)


def _place(task: Task, tool: Tool, bound: Bound, indices: frozenset[str]) -> Iterator[_Place]:
    declared: Mapping[str, Any] = tool.parameters.get("properties", {})
    given = {name: _typed(declared.get(name), value) for name, value in bound.items()}
    missing = [name for name in tool.parameters.get("required", ()) if name not in given]
    drawn = {name: drawn_argument(tool, name) for name in missing}
    try:
        call = admit(task, ToolCall(name=tool.name, arguments={**given, **drawn}))
    except RefusedError:
        return
    offered = {name for name, schema in declared.items() if isinstance(schema, Mapping) and _offers(schema)}
    yield _Place(call, [value for name, value in given.items() if name not in indices | offered])


def _offers(schema: Mapping[str, Any]) -> bool:
    """Whether a parameter says itself what its values are."""
    return "enum" in schema or "const" in schema or schema.get("type") == "boolean"


def _typed(schema: Json, value: Json) -> Json:
    """A part of a pointer as its parameter wants it."""
    if not isinstance(value, str) or not isinstance(schema, Mapping) or schema.get("type") not in ("integer", "number"):
        return value
    try:
        return int(value) if schema["type"] == "integer" else float(value)
    except ValueError:
        return value


async def visible_to(player: ScriptPlayer) -> Visible:
    """The closure of reads over what an agent is shown."""
    functions = normalised(" ".join(orjson.dumps(tool.function).decode() for tool in player.task.tools))
    text, answers, waiting = "".join((*texts_shown(player.task).values(), functions)), [], readable_places(player.task)
    ready = waiting
    while ready:
        told = [all(says(text, value) for value in place.needs) for place in waiting]
        ready = list(compress(waiting, told))
        waiting = list(compress(waiting, map(not_, told)))
        for place in ready:
            observed = await player.answer(place.call)
            answers.append(SeenAnswer(place.call, observed.content, observed.ok))
            text += normalised(observed.content)
    return Visible(answers=answers, text=text)
