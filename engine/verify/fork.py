"""A recorded episode up to one of its turns, and from there on live, as often as one likes.

The turns before come from the record, as in engine.verify.replay: the same tokens, the same answers. Then a policy that
is served now goes on, with the run's own user, world and scorer. What they are asked and what comes of it is nobody's
record: the run stays as it is, and nothing of a branch is ever trained on.
"""

from __future__ import annotations

import math
import time
from array import array
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import anyio
import numpy as np
from anyio import to_thread

from engine.chat.chat_format import ChatFormat
from engine.config.tree import Config
from engine.errors import ConfigError, RunError
from engine.run.served_policy import open_policy, watched
from engine.rundir.layout import RunDir
from engine.serving.served import READY_S
from engine.task import Task
from engine.types import Episode, EpisodeGroup, Span, Tokens
from engine.verify.compare import transcript_difference
from engine.verify.replay import RecordedPolicy, open_replayer
from engine.verify.run import found_episode


@dataclass(frozen=True, slots=True, kw_only=True)
class Fork:
    """Where a recorded episode is left."""

    run: RunDir
    config: Config
    tasks: Mapping[str, Task]
    group: EpisodeGroup
    episode: Episode
    turn: int

    @property
    def id(self) -> str:
        """The group of its branches."""
        return f"{self.episode.id}+{self.turn:02d}"


def find_fork(run: RunDir, episode_id: str, turn: int) -> tuple[EpisodeGroup, Episode]:
    """The episode and its group.

    Raises ConfigError for an episode that is not there, or cannot be executed again, or does not have that turn."""
    group, episode = found_episode(run, episode_id)
    if episode.reward is None:
        raise ConfigError(
            f"{episode.id} is masked ({episode.outcome}): time and faults made it what it is, and it cannot be "
            f"executed again; fork one that was scored (`synth-engine show {run.path} {group.id}`)"
        )
    if episode.tokens is None:
        raise ConfigError(f"{episode.id} has no token ids that a policy could go on from; fork one that has")
    if turn >= episode.turns:
        raise ConfigError(
            f"{episode.id} has {episode.turns} turns, 0 to {episode.turns - 1}: there is no {episode.id}@{turn}"
        )
    return group, episode


def before(episode: Episode, turn: int) -> Episode:
    """What had been said, done and seen when the policy was asked for that turn."""
    tokens = episode.tokens
    assert tokens is not None
    completions = [index for index, message in enumerate(episode.messages) if message["role"] == "assistant"]
    sampled = sum(span.length for span in tokens.spans[:turn])
    return replace(
        episode,
        messages=episode.messages[: completions[turn]],
        events=tuple(event for event in episode.events if event.turn < turn),
        tokens=Tokens(
            ids=tokens.ids[: tokens.spans[turn].start], logprobs=tokens.logprobs[:sampled], spans=tokens.spans[:turn]
        ),
    )


async def begun(fork: Fork, said: str | None) -> Episode:
    """The record that every branch begins with: the turns before, and what is `said` next.

    Raises RunError if the turns before come out differently now, ConfigError as `open_replayer` does, and for words
    that no completion has room for."""
    record = before(fork.episode, fork.turn)
    async with open_replayer(fork.run, fork.config, fork.tasks) as replayer:
        replayed = await replayer.replay(fork.group, record, replayer.world(fork.group.id))
        if (found := transcript_difference(record, replayed)) is not None:
            raise RunError(
                f"{fork.episode.id}: what was before turn {fork.turn} comes out differently now: {found.where}, "
                f"expected {found.expected}, found {found.found}; see `synth-engine verify {fork.run.path} "
                f"{fork.episode.id}`"
            )
        return record if said is None else _saying(record, said, replayer.chat, fork.config.limits.completion_tokens)


def _saying(record: Episode, said: str, chat: ChatFormat, most: int) -> Episode:
    """The record with one more completion, which nobody sampled."""
    ids = array("I", [*chat.encode(said), chat.stop_token_ids[0]])
    if len(ids) > most:
        raise ConfigError(f"--say has {len(ids)} tokens, more than a turn may have (limits.completion_tokens = {most})")
    tokens = record.tokens
    assert tokens is not None
    span = Span(start=len(tokens.ids), length=len(ids), version=record.version)
    return replace(
        record,
        tokens=Tokens(
            ids=np.concatenate([tokens.ids, np.asarray(ids, np.uint32)]),
            logprobs=np.concatenate([tokens.logprobs, np.full(len(ids), math.nan, np.float32)]),
            spans=(*tokens.spans, span),
        ),
    )


async def go_on(fork: Fork, record: Episode, live: RunDir, adapter: Path | None, branches: int) -> list[Episode]:
    """Play that many episodes which begin with `record`, all at once; the servers are those of `live`.

    `record.version` is that of the adapter. Raises as `open_replayer`, `open_policy` and the load of an adapter do."""
    played: dict[int, Episode] = {}
    config, run_id = fork.config, await to_thread.run_sync(lambda: live.run_id)

    def unheard(_: Any) -> None:
        """What happens to the servers is of no interest here."""

    async with (
        open_replayer(fork.run, config, fork.tasks, live) as replayer,
        open_policy(live, config, replayer.chat, time.monotonic, unheard, READY_S) as served,
        watched(served, run_id, adapter) as name,
    ):
        policy = RecordedPolicy(record, replayer.chat, then=served.policy)
        world = replayer.world(fork.group.id)
        plan = replace(
            replayer.plan(fork.group, record),
            group_id=fork.id,
            adapter=name,
            limits=config.limits.value(),
            sampling=config.sampling,
        )

        async def play(branch: int) -> None:
            mine = replace(plan, id=f"{fork.id}.{branch:02d}", queued_s=time.monotonic())
            played[branch] = await replayer.play(mine, policy, world)

        async with anyio.create_task_group() as tg:
            for branch in range(branches):
                tg.start_soon(play, branch)
    return [played[branch] for branch in range(branches)]
