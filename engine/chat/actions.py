"""What the agent did, read from the text of its completion (Hermes and Qwen tags).

The first tag decides the kind; after calls, anything that is not a call is ignored. JSON is read strictly: a call
that is not `{"name": ..., "arguments": {...}}` is :class:`Malformed`, which the agent sees as an observation.

In a completion without a tag, a line or a code fence that begins as a call does is a call, read just as strictly. Some
models write no other: in Qwen2.5-Coder-0.5B the tokens `<tool_call>` and `</tool_call>` are untrained (they have the
embedding of the unused ones, and log-probability -22), so that neither an error observation nor a LoRA adapter could
teach them. To say such a line to the user would let a dump of parameters pass for a question about each of them. A
fence with anything else in it is text.

Thoughts are no action: what stands before `</think>` is skipped, tags and all, and said to nobody, whether the
completion or the template opened it. A thought that is not closed leaves no action and is malformed.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass

import orjson

from engine.schema.recordable import UnrecordableError, deeper_than, recorded
from engine.types import Json, ToolCall

_DEPTH = 32
"""Levels to which arguments may nest: far above any tool's, and far below what a frame can hold."""
_OPENING = re.compile(r"<(tool_call|question|answer)>")
_CALL = re.compile(r"<tool_call>(.*?)(</tool_call>|$)", re.DOTALL)
_BARE = re.compile(
    r"""^[ \t]*(?:```\w*[ \t]*)?(?=\{\s*"(?:name|function)"\s*:\s*"[^"]*"\s*,\s*"(?:arguments|parameters|args)"\s*:)""",
    re.MULTILINE,
)
_JSON = json.JSONDecoder()
_LONG_NUMBER = re.compile(r"\d{19}")
"""What an integer beyond 64 bits has at least."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Malformed:
    """A call that could not be read."""

    reason: str

    @property
    def observation(self) -> str:
        """What the agent is told."""
        return orjson.dumps({"error": f"malformed call: {self.reason}"}).decode()


@dataclass(frozen=True, slots=True, kw_only=True)
class AgentCalls:
    """One or more tool calls, in the order in which they run."""

    calls: tuple[ToolCall | Malformed, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class AgentQuestion:
    """A question to the user."""

    text: str


@dataclass(frozen=True, slots=True, kw_only=True)
class FinalAnswer:
    """The final answer."""

    text: str


@dataclass(frozen=True, slots=True, kw_only=True)
class PlainMessage:
    """A completion without a tag: said to the user as it is."""

    text: str


def parse_action(text: str) -> AgentCalls | AgentQuestion | FinalAnswer | PlainMessage:
    """Read the action of one completion; never raises.

    A question or answer that is not closed is what is there; a call or thought that is not closed is malformed."""
    text = text.rpartition("</think>")[2].strip()
    if text.startswith("<think>"):
        return AgentCalls(calls=(Malformed(reason="</think> is missing"),))
    opening = _OPENING.search(text)
    if opening is None:
        bare = tuple(_bare_calls(text))
        return AgentCalls(calls=bare) if bare else PlainMessage(text=text)
    kind = opening.group(1)
    if kind == "tool_call":
        return AgentCalls(
            calls=tuple(_call(body, closed=bool(end)) for body, end in _CALL.findall(text, opening.start()))
        )
    inner = text[opening.end() :].partition(f"</{kind}>")[0].strip()
    return AgentQuestion(text=inner) if kind == "question" else FinalAnswer(text=inner)


def _bare_calls(text: str) -> Iterator[ToolCall | Malformed]:
    at = 0
    while begin := _BARE.search(text, at):
        start = begin.end()
        try:
            _, at = _JSON.raw_decode(text, start)
        except (ValueError, RecursionError):
            at = len(text)
        yield _call(text[start:at], closed=True)


def _call(body: str, *, closed: bool) -> ToolCall | Malformed:
    if not closed:
        return Malformed(reason="</tool_call> is missing")
    try:
        call = orjson.loads(body)
        if _LONG_NUMBER.search(body):
            # Read again, for orjson makes a float of an integer that is too large: another number, without a word.
            json.loads(body, parse_int=_exact)
    except orjson.JSONDecodeError as error:
        return Malformed(reason=f"not JSON ({error.msg})")
    except (UnrecordableError, RecursionError) as error:
        return Malformed(reason=str(error))
    if not isinstance(call, dict):
        return Malformed(reason="not an object")
    name, arguments = call.get("name"), call.get("arguments")
    if not isinstance(name, str) or not name:
        return Malformed(reason="name must be a string")
    if not isinstance(arguments, dict):
        return Malformed(reason="arguments must be an object")
    if deeper_than(_DEPTH, arguments):
        return Malformed(reason=f"arguments nest deeper than {_DEPTH} levels")
    return ToolCall(name=name, arguments=arguments)


def _exact(digits: str) -> Json:
    """An integer as it is written.

    Raises UnrecordableError where it does not fit into 64 bits."""
    return recorded(int(digits))
