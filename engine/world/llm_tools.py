"""Tools played by a language model, behind the mapping: it is asked once for what nobody knows yet.

What a declared effect decides is never asked. The model sees the tool, the call, the state object, the writes so far
and the answers given before, and either names an answer that means the same or makes a new one. Neither is believed
before it is checked: an answer must fit the declared outputs and must not contradict the call or the state, and calls
that differ in a number, a code or a choice are never the same.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from itertools import chain, islice
from typing import Any

import orjson

from engine.llm.prompts import ROLE_INSTRUCTIONS
from engine.llm.question import Asker, ModelQuestion, RefusedReplyError, exactly, one_of
from engine.task import Task, Tool
from engine.types import Json, Observation, ToolCall
from engine.world.admission import content, outputs, refused
from engine.world.effects import NOT_FOUND
from engine.world.mapping import Equivalent
from engine.world.meaning import differing, may_mean_the_same
from engine.world.states import Key, MappingEntry, WorldState, key_of
from engine.world.vetoes import Vetoes

_MOST_ANSWERS = 160
"""Of a state's answers, and of other states', that the model sees (paper: M has at most about as many)."""


class LlmSimulator:
    """A ToolSimulator that asks a language model (arXiv 2601.22511, section 3.2)."""

    def __init__(self, asker: Asker, vetoes: Vetoes | None = None) -> None:
        self._asker = asker
        self._vetoes = vetoes or Vetoes()

    async def simulate(self, state: WorldState, call: ToolCall, known: Mapping[str, Any]) -> Observation | Equivalent:
        """See engine.world.mapping.ToolSimulator."""
        tool = state.world.task.tool(call.name)
        assert tool is not None

        def admit(reply: Json, document: Mapping[str, Any]) -> Observation | Equivalent:
            if reply["same_as"] is not None:
                return _same(tool, call, document["answers"], reply["same_as"])
            return _made(tool, call, known, reply)

        return await self._asker.ask(_question(state, tool, call, self._vetoes), admit)


def _question(state: WorldState, tool: Tool, call: ToolCall, vetoes: Vetoes) -> ModelQuestion:
    key = key_of(call)
    apart, withdrawn = vetoes.apart(state, key), vetoes.withdrawn(state, key)
    # An answer that was withdrawn is not to be found in the journal again.
    again = [withdrawn] if withdrawn else []
    # What it is not the same as cannot be pointed at, and is still to be consistent with.
    elsewhere = chain(
        (state.entries[other] for other in apart),
        (entry for digest, known in state.world.entries.items() if digest != state.hash for entry in known.values()),
    )
    answers = _answers(state, tool, apart)
    document = {
        "as": "tool",
        # What stays the same stands first, for the server's prefix cache, and the call last: small models go by that.
        "background": _background(state.world.task),
        "elsewhere": [_told(entry) for entry in islice(elsewhere, _MOST_ANSWERS)],
        "answers": [{"number": number, **_told(entry)} for number, entry in enumerate(answers, 1)],
        "writes": [{"tool": write.name, "arguments": write.arguments} for write in state.writes],
        "state": state.state,
        "tool": {
            "name": tool.name,
            "description": tool.description,
            "parameters": tool.parameters,
            "outputs": tool.outputs,
        },
        "arguments": call.arguments,
    }
    return ModelQuestion(
        role="tool",
        task=state.world.task.id,
        owner=state.world.name,
        about=("tool", state.world.name, state.hash, key.tool, key.arguments.decode(), *again),
        instructions=ROLE_INSTRUCTIONS["tool"],
        document=document,
        schema=_schema(tool, {"anyOf": [{"type": "integer", "minimum": 1}, {"type": "null"}]}),
        held_to=_schema(tool, one_of("integer", _pointable(tool, call, answers))),
    )


def _background(task: Task) -> str:
    """What the world must be consistent with; the user's context tells it what really exists."""
    return "\n".join(filter(None, (task.instruction, task.user.context if task.user else "")))


def _answers(state: WorldState, tool: Tool, apart: Collection[Key]) -> list[MappingEntry]:
    """The answers of this state that can be pointed at, those of the tool first: only they can be the same."""
    known = [entry for key, entry in state.entries.items() if key not in apart]
    known.sort(key=lambda entry: entry.call.name != tool.name)
    return known[:_MOST_ANSWERS]


def _pointable(tool: Tool, call: ToolCall, answers: Sequence[MappingEntry]) -> list[int]:
    """The numbers of those answers that the call's may be the same as."""
    return [
        number
        for number, entry in enumerate(answers, 1)
        if entry.call.name == tool.name and differing(tool, call.arguments, entry.call.arguments) is None
    ]


def _told(entry: MappingEntry) -> dict[str, Any]:
    observation = entry.observation
    return {
        "tool": entry.call.name,
        "arguments": entry.call.arguments,
        "ok": observation.ok,
        "answer": orjson.loads(observation.content),
    }


def _schema(tool: Tool, same_as: Mapping[str, Any]) -> dict[str, Any]:
    """`ok` decides the form of the answer: left on its own, a small model's often says the contrary."""
    works = {"ok": {"type": "boolean", "const": True}, "outputs": tool.outputs or {"type": "object"}}
    fails = {"ok": {"type": "boolean", "const": False}, "error": {"type": "string", "minLength": 1}}
    # One level down: OpenAI's strict mode takes no choice at the root.
    return exactly({"same_as": same_as, "answer": {"anyOf": [exactly(works), exactly(fails)]}})


# --- what is believed -----------------------------------------------------------------------------------------------


def _same(tool: Tool, call: ToolCall, shown: Sequence[Mapping[str, Any]], number: int) -> Equivalent:
    """The answer of that number, if it can mean the same.

    Raises RefusedReplyError otherwise."""
    if number > len(shown) or shown[number - 1]["tool"] != tool.name:
        raise RefusedReplyError("malformed", f"same_as {number}: no entry of {tool.name} has that number; use null")
    other = shown[number - 1]
    arguments = other["arguments"]
    name = differing(tool, call.arguments, arguments)
    if name is not None:
        mine, theirs = call.arguments.get(name), arguments.get(name)
        raise RefusedReplyError(
            "contradiction", f"same_as {number}: {name} differs ({mine!r} here, {theirs!r} there); use null"
        )
    said = Observation(content=content(other["answer"]), ok=other["ok"])
    return Equivalent(key_of(ToolCall(name=tool.name, arguments=arguments)), said)


def _made(tool: Tool, call: ToolCall, known: Mapping[str, Any], reply: Mapping[str, Any]) -> Observation:
    """The answer that the model made, with what the state says of it.

    Raises RefusedReplyError where it contradicts the call."""
    if not reply["answer"]["ok"]:
        return refused(reply["answer"]["error"])
    answer = reply["answer"]["outputs"]
    answer = {**answer, **{name: value for name, value in known.items() if name in answer}}
    for name in answer.keys() & call.arguments.keys() & outputs(tool).keys():
        if not may_mean_the_same(call.arguments[name], answer[name], {}):
            raise RefusedReplyError(
                "contradiction",
                f"{name} was {call.arguments[name]!r} in the call, and is {answer[name]!r} in the answer",
            )
    return Observation(content=content(answer), ok=True)


class FrozenSimulator:
    """A ToolSimulator for a world in which nothing is made up: what the state does not decide is not found."""

    async def simulate(self, state: WorldState, call: ToolCall, known: Mapping[str, Any]) -> Observation:  # noqa: ARG002
        """See engine.world.mapping.ToolSimulator; never fails."""
        return refused(NOT_FOUND)
