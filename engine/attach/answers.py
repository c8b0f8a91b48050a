"""An episode in flight as somebody follows it: what is new since they looked last, as JSON, within one answer's bytes.

Texts come from models, tools and packs: long ones are cut, with a note. Making them safe for a terminal is the business
of whoever draws them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
import orjson
from pydantic import BaseModel, ConfigDict, NonNegativeInt

from engine.core.ledger import Ledger
from engine.task import Rubric
from engine.telemetry.window import WindowRow, row
from engine.types import Event, Json, Reward

_TEXT, _NAME = 16_000, 120
"""Characters of a text, and of a name."""
_PIECE_BYTES, _TASK_BYTES = 20_480, 5_120
"""Most bytes of a message or event, and of an instruction or rubric: these fit in an answer beside everything else."""
_AROUND_BYTES = 4
"""Quotes, colon and comma."""
_TOKENS = 256
"""Ids or log-probabilities in a piece."""
_dumps = partial(orjson.dumps, option=orjson.OPT_SERIALIZE_NUMPY | orjson.OPT_NON_STR_KEYS)

Piece = tuple[str, bytes]
"""A field, and its value, or what comes next in its list, as JSON."""


class Have(BaseModel):
    """How many of each list a client has got."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)
    messages: NonNegativeInt = 0
    events: NonNegativeInt = 0
    timings: NonNegativeInt = 0
    ids: NonNegativeInt = 0
    logprobs: NonNegativeInt = 0
    spans: NonNegativeInt = 0


@dataclass(slots=True)
class ByteBudget:
    """Bytes that an answer has left."""

    left: int

    def fill(self, told: dict[str, Any], pieces: Iterator[Piece]) -> None:
        """Put the first of `pieces` into `told`, as many as there is room for."""
        for field, piece in pieces:
            length = len(piece) + len(field) + _AROUND_BYTES
            if length > self.left:
                return
            self.left -= length
            if isinstance(told.get(field), list):
                told[field].append(orjson.Fragment(piece))
            else:
                told[field] = orjson.Fragment(piece)


def line(shown: WindowRow) -> list[Json]:
    """A row of the table on the wire."""
    return list(shown._replace(task=name(shown.task), age_s=round(shown.age_s, 3), wait_s=round(shown.wait_s, 3)))


def head(live: Ledger, now_s: float) -> dict[str, Any]:
    """What is told of an episode every time, and its lists, in which nothing is new yet."""
    limits, finished = live.plan.limits, live.finished
    return {
        "row": line(row(live, now_s)),
        **{field: [] for field in Have.model_fields},
        "server": name(live.server),
        "most_turns": limits.turns,
        "most_tokens": limits.tokens,
        "stop": finished.stop if finished else "",
        "error": "",
        "reward": None,
    }


def texts(live: Ledger, have: Have) -> Iterator[Piece]:
    """What was said and done that a client has not got; the task comes with the first message."""
    if not have.messages:
        yield "instruction", _fitting(partial(shortened, live.plan.task.instruction), _TASK_BYTES)
        yield "rubric", _fitting(partial(_rubric, live.plan.task.rubric), _TASK_BYTES)
    yield from (("messages", _fitting(partial(_message, one))) for one in live.messages[have.messages :])
    yield from (("events", _fitting(partial(_event, one))) for one in live.events[have.events :])
    yield from (("timings", _dumps(one)) for one in live.timings[have.timings :])


def token_pieces(live: Ledger, have: Have) -> Iterator[Piece]:
    """Ids and log-probabilities that a client has not got, then the spans that point into them."""
    # Numbers without their brackets: each piece continues the list.
    for start in range(have.ids, len(live.ids), _TOKENS):
        yield "ids", _dumps(live.ids[start : start + _TOKENS].tolist())[1:-1]
    for start in range(have.logprobs, len(live.logprobs), _TOKENS):
        # A copy: an array that is looked into cannot grow.
        yield "logprobs", _dumps(np.nan_to_num(np.array(live.logprobs[start : start + _TOKENS], np.float32)))[1:-1]
    yield from (("spans", _dumps(one)) for one in live.spans[have.spans :])


def results(live: Ledger) -> Iterator[Piece]:
    """Why it failed, or what its reward is made of: told anew every time, so after all that is told once."""
    if live.finished is not None:
        yield "error", _dumps(name(live.finished.error, 1_000))
        if live.finished.reward is not None:
            yield "reward", _fitting(partial(_reward, live.finished.reward))


def shortened(text: str, most: int) -> str:
    """The first `most` characters of a text, and how many more there are; what UTF-8 cannot hold is replaced."""
    more = f" [{len(text) - most:,} more characters]" if len(text) > most else ""
    return text[:most].encode("utf-8", "replace").decode() + more


def name(text: str, most: int = _NAME) -> str:
    """A name, or another short text, at a length that a table can bear."""
    shown = shortened(text, most)
    return shown if len(_dumps(shown)) <= 2 * most else shortened(text, most // 4)


def _fitting(shape: Callable[[int], Json], most_bytes: int = _PIECE_BYTES) -> bytes:
    """What `shape` makes with a number of characters for its texts: half of them, until it takes no more bytes."""
    most = _TEXT
    while len(piece := _dumps(shape(most))) > most_bytes and most:
        most //= 2
    return piece


def _message(message: Mapping[str, Any], most: int) -> Json:
    return {"role": name(message["role"]), "content": shortened(message["content"], most)}


def _event(event: Event, most: int) -> Any:
    revealed = tuple(map(name, event.revealed[: most // 500]))
    text, arguments = shortened(event.text, most), _arguments(event.arguments, most // 2)
    return replace(event, text=text, tool=name(event.tool), arguments=arguments, revealed=revealed)


def _arguments(arguments: Mapping[str, Any], most: int) -> Any:
    """The arguments of a call; of long ones the beginning of their JSON, under a key of its own."""
    try:
        whole = _dumps(arguments)
    except TypeError as error:
        return {"…": f"[JSON cannot hold them: {error}]"}
    return orjson.Fragment(whole) if len(whole) <= most else {"…": shortened(whole.decode(), most)}


def _rubric(rubric: Rubric, most: int) -> Json:
    parts = {"forbidden": rubric.forbidden, "subgoal": rubric.subgoals, "interaction": rubric.interactions}
    items = [(part, item) for part, items in parts.items() for item in items][: most // 100]
    return [[part, name(item.id), shortened(item.text, most // 20)] for part, item in items]


def _reward(reward: Reward, most: int) -> Any:
    return replace(reward, items=tuple(replace(item, id=name(item.id)) for item in reward.items[: most // 100]))
