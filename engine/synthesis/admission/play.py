"""Scripted episodes of one task, by the engine's own loop: offline world and user, no model, no tokens, no files.

What such an episode costs is what the loop, the world and the checks cost. Nothing is rendered or tokenized, for the
script's author does not read a prompt, and a rubric reads events.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from engine.core.episode import run_episode
from engine.core.seams import EpisodePlan, Seams, Session, User
from engine.errors import ConfigError
from engine.reward.rubric import RubricScorer
from engine.synthesis.planted import DONE
from engine.task import Task
from engine.types import ChatMessage, Completion, Episode, Limits, Observation, Reward, Sampling, ToolCall, Turn
from engine.world.admission import outputs
from engine.world.mapped import MappedWorld
from engine.world.offline import OfflineSimulator, OfflineUser
from engine.world.offline_user import OfflineUserSession
from engine.world.states import WorldState

_HOUR_S = 3600.0
_LIMITS = Limits(turns=1000, tokens=1, completion_tokens=1, wall_s=_HOUR_S, turn_s=_HOUR_S)
"""No script is cut short: it has no tokens, and waits for nobody."""


@dataclass(frozen=True, slots=True)
class ScriptedPolicy:
    """Says the completions of a script, then that it is done; it samples no tokens, so nothing is to be trained on."""

    script: Sequence[str]

    async def complete(self, turn: Turn) -> Completion:
        """The completion of this turn."""
        text = self.script[turn.index] if turn.index < len(self.script) else DONE
        return Completion(text=text, ids=None, logprobs=None, adapter=turn.adapter, server="script", stop="stop")


class UnrenderedChat:
    """The Chat of a policy without tokens: messages and tools as they are, no ids."""

    def prompt(self, task: Task) -> tuple[Sequence[ChatMessage], Sequence[int], Sequence[Mapping[str, Any]]]:
        """Rules, instruction and tools."""
        system, user = {"role": "system", "content": task.rules}, {"role": "user", "content": task.instruction}
        return (system, user), (), [tool.function for tool in task.tools]

    def observation(self, messages: Sequence[ChatMessage], stop_sampled: bool) -> Sequence[int]:  # noqa: ARG002, FBT001 - the seam's
        """No ids."""
        return ()

    def ended(self, ids: Sequence[int]) -> bool:  # noqa: ARG002 - the seam's
        """A completion without ids is over."""
        return True


@dataclass(frozen=True, slots=True)
class WithholdingUser:
    """The offline user without some of the facts; without any it understands nothing."""

    withheld: frozenset[str]

    async def open(self, task: Task, seed: int, session: Session) -> OfflineUserSession:  # noqa: ARG002 - the seam's
        """A user who knows the other facts.

        Raises ConfigError for a task without a user."""
        if task.user is None:
            raise ConfigError(f"task {task.id} has no user")
        facts = {name: fact for name, fact in task.user.facts.items() if name not in self.withheld}
        return OfflineUserSession(replace(task.user, facts=facts))


class DrawingSimulator:
    """The offline simulator, which remembers what it drew."""

    def __init__(self) -> None:
        self._simulator = OfflineSimulator()
        self.drawn: dict[str, tuple[str, ...]] = {}
        """The outputs that were drawn, by tool; of a tool that has none an answer says nothing."""

    async def simulate(self, state: WorldState, call: ToolCall, known: Mapping[str, Any]) -> Observation:
        """See engine.world.mapping.ToolSimulator."""
        tool = state.world.task.tool(call.name)
        assert tool is not None
        unknown = tuple(name for name in outputs(tool) if name not in known)
        if unknown:
            self.drawn[call.name] = unknown
        return await self._simulator.simulate(state, call, known)


class ScriptPlayer:
    """Plays scripts on one task; all of its episodes share the answers of one world, as those of a run do."""

    def __init__(self, task: Task) -> None:
        self.task = task
        self._simulator = DrawingSimulator()
        self._world = MappedWorld(self._simulator)
        self._chat, self._scorer, self._user = UnrenderedChat(), RubricScorer(), OfflineUser()

    @property
    def drawn(self) -> Mapping[str, tuple[str, ...]]:
        """The outputs that a simulator had to draw in the episodes so far, by tool."""
        return self._simulator.drawn

    async def play(self, script: Sequence[str], user: User | None = None) -> Episode:
        """One episode in which the agent says these completions, and "Done." where they do not end with an answer.

        The same script always gives the same episode."""
        seams = Seams(
            policy=ScriptedPolicy(script),
            world=self._world,
            user=user or self._user,
            scorer=self._scorer,
            chat=self._chat,
            clock=_no_clock,
        )
        return await run_episode(_plan(self.task), seams, _never)

    async def reward(self, script: Sequence[str], user: User | None = None) -> Reward:
        """What that episode earns.

        Raises ConfigError for one that cannot be scored."""
        return earned(await self.play(script, user))

    async def flipped(self, script: Sequence[str], expected: Mapping[str, bool]) -> frozenset[str]:
        """The ids of the rubric items whose verdict in that episode is not the expected one.

        Raises ConfigError as `reward` does."""
        found = item_verdicts(await self.reward(script))
        return frozenset(item for item, met in expected.items() if found[item] != met)

    async def answer(self, call: ToolCall) -> Observation:
        """What a call is answered at the start of an episode."""
        session = await self._world.open(self.task, 0)
        try:
            return await session.call(call)
        finally:
            await session.close()


def earned(episode: Episode) -> Reward:
    """The reward of an episode.

    Raises ConfigError for one that was masked: its task has items that only a judge decides, or a broken check."""
    if episode.reward is None:
        raise ConfigError(f"task {episode.task_id} cannot be played offline: {episode.error}")
    return episode.reward


def item_verdicts(reward: Reward) -> dict[str, bool]:
    """Whether each rubric item is met, by its id."""
    return {verdict.id: verdict.met for verdict in reward.items}


def _plan(task: Task) -> EpisodePlan:
    return EpisodePlan(
        id="g000000.00",
        group_id="g000000",
        task=task,
        seed=0,
        version=0,
        adapter=None,
        limits=_LIMITS,
        sampling=Sampling(),
        queued_s=0.0,
    )


def _no_clock() -> float:
    return 0.0


def _never(_version: int) -> bool:
    return False
