"""An episode in flight as somebody follows it: what is new since they looked last, as JSON, within a number of bytes.

Texts come from models, tools and packs: they are cut, and what JSON cannot hold is replaced; making them safe for a
terminal is the business of whoever draws them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol

import numpy as np
import orjson

from engine.core.ledger import Ledger
from engine.task import Rubric
from engine.telemetry.window import Row, row
from engine.types import Event, Json, Reward, Span, TurnTiming

_CUTS = (16_000, 8_000, 4_000, 2_000, 800)
"""Characters of a text, and what is tried when it takes more bytes than it may."""
_PIECE_BYTES = 20_480
"""Of one message or event: it must fit in an answer beside everything else."""
_TASK_BYTES = 5_120
"""Of an instruction, and of a rubric: they come with the first message."""
_NAME = 120
"""Characters of a name."""
_DEPTH = 16
_ENTRY = 8
"""Characters that an entry of a list or an object counts for, beside what it holds."""
_AROUND = 4
"""Bytes of quotes, colon and comma."""
_ID_BYTES, _LOGPROB_BYTES = 11, 18
"""At most, each with its comma."""
_ROUND = 32
"""Bytes around a list of them."""


class Have(Protocol):
    """How many of each a client has got."""

    @property
    def messages(self) -> int: ...  # noqa: D102
    @property
    def events(self) -> int: ...  # noqa: D102
    @property
    def timings(self) -> int: ...  # noqa: D102
    @property
    def ids(self) -> int: ...  # noqa: D102
    @property
    def logprobs(self) -> int: ...  # noqa: D102
    @property
    def spans(self) -> int: ...  # noqa: D102


@dataclass(slots=True)
class Room:
    """Bytes that an answer has left."""

    left: int

    def takes(self, piece: bytes, field: str = "") -> bool:
        """Whether it fits, with its name and what separates it from the next; then it is in."""
        length = len(piece) + len(field) + _AROUND
        fits = length <= self.left
        self.left -= length * fits
        return fits


class _Cut:
    """A value with at most so many characters, and without what JSON cannot hold."""

    def __init__(self, characters: int) -> None:
        self._left = characters

    def of(self, value: object, depth: int = 0) -> Json:
        if value is None or isinstance(value, bool):
            return value
        if isinstance(value, float):
            return float(value)
        if isinstance(value, str):
            kept = value[: self._left].encode("utf-8", "replace").decode()
            more = len(value) - self._left
            self._left -= len(kept)
            return f"{kept} [{more:,} more characters]" if more > 0 else kept
        if isinstance(value, int):
            return int(value) if value.bit_length() < 64 else f"[a number of {value.bit_length():,} bits]"
        if depth == _DEPTH or not isinstance(value, Mapping | list | tuple):
            return f"[{type(value).__name__}]"
        return self._mapping(value, depth) if isinstance(value, Mapping) else self._list(value, depth)

    def _mapping(self, value: Mapping[Any, Any], depth: int) -> dict[str, Json]:
        made: dict[str, Json] = {}
        for key, inner in value.items():
            if self._left <= 0:
                made["…"] = f"[{len(value) - len(made):,} more]"
                break
            self._left -= _ENTRY
            name = self.of(key, _DEPTH)
            made[name if isinstance(name, str) else str(name)] = self.of(inner, depth + 1)
        return made

    def _list(self, value: Sequence[Any], depth: int) -> list[Json]:
        made: list[Json] = []
        for inner in value:
            if self._left <= 0:
                return [*made, f"[{len(value) - len(made):,} more]"]
            self._left -= _ENTRY
            made.append(self.of(inner, depth + 1))
        return made


def name(value: object, most: int = _NAME) -> Json:
    """A name, or another short text, at a length that a table can bear."""
    shown = _Cut(most).of(value)
    return shown if len(orjson.dumps(shown)) <= 2 * most else _Cut(most // 4).of(value)


def line(shown: Row) -> list[Json]:
    """A row of the table on the wire."""
    return list(shown._replace(task=name(shown.task), age_s=round(shown.age_s, 3), wait_s=round(shown.wait_s, 3)))


class Following:
    """One episode in an answer: first `fixed`, then what there is room for."""

    def __init__(self, live: Ledger, have: Have, now_s: float) -> None:
        self._live, self._have = live, have
        limits, finished = live.plan.limits, live.finished
        self.fixed: dict[str, Any] = {
            "row": line(row(live, now_s)),
            **{field: [] for field in ("messages", "events", "timings", "ids", "logprobs", "spans")},
            "server": name(live.server),
            "most_turns": limits.turns,
            "most_tokens": limits.tokens,
            "stop": finished.stop if finished else "",
            "error": "",
            "reward": None,
        }

    def texts(self, room: Room) -> None:
        """What was said and done, as much of it as there is room for."""
        live, have = self._live, self._have
        # Without its task no message is of use, and who has a message is not told the task again.
        if have.messages or self._task(room):
            self.fixed["messages"] = _pieces(live.messages[have.messages :], _message, room)
            self.fixed["events"] = _pieces(live.events[have.events :], _event, room)
        self.fixed["timings"] = _pieces(live.timings[have.timings :], _whole, room)

    def tokens(self, room: Room) -> None:
        """Ids, log-probabilities, and, once those are complete, the spans that point into them."""
        live, have = self._live, self._have
        ids = live.ids[have.ids : have.ids + max(0, room.left - _ROUND) // _ID_BYTES]
        self._put("ids", orjson.dumps(ids.tolist()), room)
        # A copy: an array that is looked into cannot grow.
        logprobs = live.logprobs[have.logprobs : have.logprobs + max(0, room.left - _ROUND) // _LOGPROB_BYTES]
        shortest = orjson.dumps(np.nan_to_num(np.array(logprobs, np.float32)), option=orjson.OPT_SERIALIZE_NUMPY)
        self._put("logprobs", shortest, room)
        if have.ids + len(ids) >= len(live.ids) and have.logprobs + len(logprobs) >= len(live.logprobs):
            self.fixed["spans"] = _pieces(live.spans[have.spans :], _whole, room)

    def results(self, room: Room) -> None:
        """Why it failed, or what its reward is made of: told anew every time, so after what is told once."""
        if (finished := self._live.finished) is None:
            return
        self._put("error", orjson.dumps(name(finished.error, most=1_000)), room)
        if (reward := finished.reward) is not None:
            self._put("reward", _fitting(partial(_reward, reward)), room)

    def _task(self, room: Room) -> bool:
        task = self._live.plan.task
        instruction = _fitting(partial(_text, task.instruction), _TASK_BYTES)
        rubric = _fitting(partial(_rubric, task.rubric), _TASK_BYTES)
        return self._put("instruction", instruction, room) and self._put("rubric", rubric, room)

    def _put(self, field: str, piece: bytes, room: Room) -> bool:
        if fits := room.takes(piece, field):
            self.fixed[field] = orjson.Fragment(piece)
        return fits


def _pieces(values: Sequence[Any], shape: Callable[[Any, int], Json], room: Room) -> list[orjson.Fragment]:
    """The first of `values`, as many as there is room for."""
    made = []
    for value in values:
        piece = _fitting(partial(shape, value))
        if not room.takes(piece):
            break
        made.append(orjson.Fragment(piece))
    return made


def _fitting(shape: Callable[[int], Json], most_bytes: int = _PIECE_BYTES) -> bytes:
    """What `shape` makes with a number of characters for its texts: fewer, until it takes no more bytes than that."""
    piece = b""
    for most in _CUTS:
        piece = orjson.dumps(shape(most))
        if len(piece) <= most_bytes:
            break
    return piece


def _whole(value: TurnTiming | Span, _: int) -> Json:
    return value


def _text(text: str, most: int) -> Json:
    return _Cut(most).of(text)


def _message(message: Mapping[str, Any], most: int) -> Json:
    return {"role": name(message.get("role", "")), "content": _Cut(most).of(message.get("content", ""))}


def _event(event: Event, most: int) -> Json:
    return {
        "number": event.number,
        "turn": event.turn,
        "kind": event.kind,
        "text": _Cut(most).of(event.text),
        "tool": name(event.tool),
        "arguments": _Cut(most // 2).of(event.arguments),
        "ok": event.ok,
        "revealed": _Cut(most // 8).of(event.revealed),
    }


def _reward(reward: Reward, most: int) -> Json:
    items = [
        {
            "id": name(item.id),
            "part": name(item.part),
            "met": bool(item.met),
            "evidence": name(item.evidence),
            "by": name(item.by),
        }
        for item in reward.items[: most // 100]
    ]
    return {
        "value": float(reward.value),
        "F": float(reward.F),
        "N": float(reward.N),
        "I": float(reward.I),
        "items": items,
    }


def _rubric(rubric: Rubric, most: int) -> Json:
    parts = {"forbidden": rubric.forbidden, "subgoal": rubric.subgoals, "interaction": rubric.interactions}
    items = [(part, item) for part, items in parts.items() for item in items][: most // 100]
    cut = _Cut(most // 2)
    return [[part, name(item.id), cut.of(item.text)] for part, item in items]
