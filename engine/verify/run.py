"""All recorded episodes of a run, or some: which come out the same, which do not, and which cannot be verified."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path

from anyio import to_thread

from engine.chat.chat_format import ChatFormat
from engine.config.load import load
from engine.config.tree import Config
from engine.errors import ConfigError
from engine.llm.journal import Counts
from engine.packs.pack import load_pack
from engine.rundir.layout import RunDir
from engine.serving.pinned import changed_pack, changed_text
from engine.stream.digest import transcript_sha256
from engine.stream.reader import iter_groups, read_group, read_group_ids
from engine.types import Episode, EpisodeGroup, Outcome
from engine.verify.compare import Difference, difference
from engine.verify.replay import open_replayer

OnProgress = Callable[[int, int], None]
"""Hears how many groups are done, and of how many."""


@dataclass(slots=True, kw_only=True)
class Verified:
    """What came out."""

    episodes: int = 0
    """Episodes that were played again."""
    hashes: dict[str, str] = field(default_factory=dict)
    """Transcript hash of those that were named and came out the same, by id."""
    differences: list[Difference] = field(default_factory=list)
    not_verified: Counter[Outcome] = field(default_factory=Counter)
    """Masked episodes by outcome: time and faults made them what they are."""
    changed: list[str] = field(default_factory=list)
    """Files that are not what the run began with."""
    exchanges: Counts | None = None
    """What the journal holds, all of it sound; None where it was not read as a whole."""

    @property
    def identical(self) -> int:
        """Episodes with the recorded transcript hash, end and reward."""
        return self.episodes - len(self.differences)

    @property
    def sound(self) -> bool:
        """Whether nothing differs."""
        return not self.differences and not self.changed


async def verify_run(run: RunDir, episodes: Sequence[str], progress: OnProgress) -> Verified:
    """Play recorded episodes again, all or those named, and compare.

    Raises ConfigError for an episode that is not there and for what `open_replayer` lacks, RunError for a journal that
    was altered, StreamError at a damaged segment."""
    config = (await to_thread.run_sync(load, run.config)).config
    pack = await to_thread.run_sync(load_pack, run.pack)
    wanted, result = frozenset(episodes), Verified()
    async with open_replayer(run, config, {task.id: task for task in pack.tasks}) as replayer:
        result.changed += await to_thread.run_sync(_changed, run, config, replayer.chat)
        if not wanted and replayer.journal is not None:
            result.exchanges = await replayer.journal.check()
        total, groups = await to_thread.run_sync(_groups, run, wanted)
        done = 0
        while (group := await to_thread.run_sync(next, groups, None)) is not None:
            world = replayer.world(group.id)
            for episode in group.episodes:
                if wanted and episode.id not in wanted:
                    continue
                if episode.reward is None:
                    result.not_verified[episode.outcome] += 1
                    continue
                result.episodes += 1
                replayed = await replayer.replay(group, episode, world)
                if (found := difference(episode, replayed)) is not None:
                    result.differences.append(found)
                elif wanted:
                    result.hashes[episode.id] = transcript_sha256(replayed)
            done += 1
            progress(done, total)
    return result


def _groups(run: RunDir, wanted: frozenset[str]) -> tuple[int, Iterator[EpisodeGroup]]:
    """How many groups there are to look at, and these: training in arrival order, then evaluations.

    Raises ConfigError for an episode that is not there."""
    if not wanted:
        total = len(read_group_ids(run.trajectories)) + len(read_group_ids(run.eval))
        return total, chain(iter_groups(run.trajectories), iter_groups(run.eval))
    found: dict[str, EpisodeGroup] = {}
    for episode_id in sorted(wanted):
        group, _ = found_episode(run, episode_id)
        found[group.id] = group
    return len(found), iter(found.values())


def found_episode(run: RunDir, episode_id: str) -> tuple[EpisodeGroup, Episode]:
    """A recorded episode and its group.

    Raises ConfigError for one that is not there."""
    group_id = episode_id.rpartition(".")[0]
    group = read_group(run.eval if group_id.startswith("e") else run.trajectories, group_id)
    episodes = {} if group is None else {episode.id: episode for episode in group.episodes}
    if group is None or episode_id not in episodes:
        raise ConfigError(f"{run.path}: it has no episode {episode_id}; `synth-engine show {run.path}` names some")
    return group, episodes[episode_id]


def _changed(run: RunDir, config: Config, chat: ChatFormat) -> list[str]:
    """What is not what manifest.json says: rules, checks and tokens come from there."""
    return [*changed_pack(run), *changed_text(run, Path(config.model.path), chat)]
