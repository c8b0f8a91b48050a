"""A group as a frame can hold it, whatever its episodes kept (invariant *bad-episode-is-data*).

What comes into an episode is held to engine.schema.recordable at the seams. This is the net below them, for what got
past: one episode is masked, and the run goes on.
"""

from __future__ import annotations

from dataclasses import replace

from engine.schema.legible import legible
from engine.stream import frame
from engine.types import Episode, EpisodeGroup, Outcome


def masked(group: EpisodeGroup) -> EpisodeGroup:
    """Returns the group with every episode masked that cannot be written, or takes more than its share of a frame."""
    return replace(group, episodes=tuple(_masked(group, episode) for episode in group.episodes))


def _masked(group: EpisodeGroup, episode: Episode) -> Episode:
    share = frame.MAX_BODY_BYTES // len(group.episodes)
    try:
        size = frame.body_bytes(frame.encode(replace(group, episodes=(episode,))))
    except frame.StreamError as error:
        return _emptied(episode, str(error))
    return episode if size <= share else _emptied(episode, f"it has {size} bytes, and its share is {share}; lower G")


def _emptied(episode: Episode, reason: str) -> Episode:
    """The episode without whatever somebody handed in: unscored, and its error says why."""
    return replace(
        episode,
        messages=(),
        events=(),
        tokens=None,
        final_state=None,
        reward=None,
        outcome=Outcome.INFRA_ERROR,
        error=legible(f"{episode.id} cannot be recorded: {reason}"),
    )
