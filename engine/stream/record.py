"""The values of `engine.types` from their JSON form.

The other direction needs no code: orjson writes dataclasses by field name. A field that a later version adds with
a default is read from old frames without a change here; only fields that are no plain JSON need a line.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from engine.types import (
    Episode,
    EpisodeGroup,
    Event,
    EventKind,
    Outcome,
    Reward,
    Sampling,
    Source,
    StopReason,
    Tokens,
    TurnTiming,
    Verdict,
)

Record = dict[str, Any]


def episode_group(raw: Record, ledgers: Sequence[Tokens | None]) -> EpisodeGroup:
    """A group whose episodes get `ledgers`, one each and in order.

    Raises KeyError, TypeError or ValueError for anything that is not the JSON of an EpisodeGroup."""
    sampling = raw["sampling"]
    episodes = tuple(_episode(episode, tokens) for episode, tokens in zip(raw["episodes"], ledgers, strict=True))
    parts: Record = {
        "source": Source(raw["source"]),
        "sampling": Sampling(**(sampling | {"stop": tuple(sampling["stop"])})),
        "episodes": episodes,
    }
    return EpisodeGroup(**(raw | parts))


def _episode(raw: Record, tokens: Tokens | None) -> Episode:
    parts: Record = {
        "messages": tuple(raw["messages"]),
        "events": tuple(event_of(event) for event in raw["events"]),
        "tokens": tokens,
        "stop": StopReason(raw["stop"]),
        "outcome": Outcome(raw["outcome"]),
        "reward": None if raw["reward"] is None else reward_of(raw["reward"]),
        "timings": tuple(TurnTiming(**timing) for timing in raw["timings"]),
    }
    return Episode(**(raw | parts))


def event_of(raw: Record) -> Event:
    """An event; raises like `episode_group`."""
    return Event(**(raw | {"kind": EventKind(raw["kind"]), "revealed": tuple(raw["revealed"])}))


def reward_of(raw: Record) -> Reward:
    """A reward; raises like `episode_group`."""
    return Reward(**(raw | {"items": tuple(Verdict(**item) for item in raw["items"])}))
