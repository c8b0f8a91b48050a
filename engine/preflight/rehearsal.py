"""Worlds, users, scorers and advantages of one's own, tried for a moment before a run starts.

What an episode and a learner step ask of them is asked once, about the first task of the pack, in a process of its own
(`python -m engine.preflight.rehearsal PACK`, the configuration on its standard input): what cannot work says so at
once, and not as a run without a scored episode.
"""

from __future__ import annotations

import inspect
import math
import subprocess
import sys
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import anyio

from engine.config.load import dump, load
from engine.config.plugins import REMEDY, foreign, load_object, plugin, plugins
from engine.config.tree import Config
from engine.core.seams import Scorer, ScoringRecord, Session, User, World, returned
from engine.errors import ConfigError, EpisodeError
from engine.packs.pack import load_pack
from engine.processes.child import PYTHON
from engine.reward.judges import require_judge
from engine.schema.recordable import UnrecordableError, recorded
from engine.scripted import ConstantScorer, ConstantUser
from engine.task import Task
from engine.telemetry.writers import require_writer
from engine.types import Event, EventKind, Observation, Reply, Reward, StopReason, ToolCall
from engine.world.offline import OfflineWorld

_REWARDS = (0.0, 1.0, 0.25)
_ANSWER = "This is a rehearsal."


def rehearse(config: Config, pack: Path) -> None:
    """Try what the configuration names as `package:Object`, and look for its judge and what its metrics writers need.

    Raises ConfigError that names key and object, what was asked of it, and what came of that."""
    require_judge(config.scorer.judge_kind)
    for writer in config.metrics.writers:
        require_writer(writer)
    if not plugins(config):
        return
    argv = [*PYTHON, "-m", "engine.preflight.rehearsal", str(pack)]
    done = subprocess.run(argv, input=dump(config), capture_output=True, text=True, check=False)
    if done.returncode:
        raise ConfigError(done.stderr.strip() or f"the rehearsal of {plugins(config)} ended with {done.returncode}")


@dataclass(frozen=True, slots=True)
class _Asked:
    """Somebody's object; what is asked of it is held to the seam."""

    named: str
    """`world.kind = 'my_world:World'`."""
    turn_s: float

    async def to(self, what: str, call: Callable[[], Awaitable[Any]]) -> Any:
        """What it answers in time.

        Raises ConfigError for whatever goes wrong; EpisodeErrors are its to raise and pass."""
        with foreign(f"{self.named}: {what}"), anyio.move_on_after(self.turn_s):
            answer = call()
            if not inspect.isawaitable(answer):
                raise ConfigError(f"{self.named}: {what} is not `async def`; {REMEDY}")
            return await answer
        raise ConfigError(f"{self.named}: {what} gave no answer within limits.turn_s = {self.turn_s:g} s")

    async def value(self, what: str, call: Callable[[], Awaitable[Any]], kind: Any) -> Any:
        """The same, of one type."""
        answer = await self.to(what, call)
        try:
            return returned(answer, kind)
        except (TypeError, ValueError) as error:
            raise ConfigError(f"{self.named}: {what}: {error}; {REMEDY}") from error


async def _episode(config: Config, task: Task) -> None:
    """What an episode asks of world, user and scorer; those of the engine's own are replaced by scripted ones."""
    named = plugins(config)
    world: World = plugin(named["world.kind"], "world.kind") if "world.kind" in named else OfflineWorld()
    user: User = plugin(named["user.kind"], "user.kind") if "user.kind" in named else ConstantUser()
    scorer: Scorer = plugin(named["scorer.kind"], "scorer.kind") if "scorer.kind" in named else ConstantScorer()

    def asked(key: str) -> _Asked:
        return _Asked(f"{key} = {named.get(key)!r}", config.limits.turn_s)

    of_world, of_user, of_scorer = map(asked, ("world.kind", "user.kind", "scorer.kind"))
    session = await of_world.to("open(task, seed)", lambda: world.open(task, 0))
    if task.user is not None:
        speaker = await of_user.to("open(task, seed, session)", lambda: user.open(task, 0, session))
        await of_user.value("reply('Hello?') of its session", lambda: speaker.reply("Hello?"), Reply)
    for tool in task.tools:
        # As an agent may: a wrong call is an observation.
        call = ToolCall(name=tool.name, arguments={})
        await of_world.value(f"call({call}) of its session", partial(_called, session, call), Observation)
    state = await of_world.to("close() of its session", lambda: session.close())  # noqa: PLW0108 - it may have none
    try:
        state = recorded(state)
    except UnrecordableError as error:
        what = "close() of its session returned what no record can hold"
        raise ConfigError(f"{of_world.named}: {what}: {error}; {REMEDY}") from error
    await of_scorer.value("score(record)", lambda: scorer.score(_record(task, state)), Reward)


def _called(session: Session, call: ToolCall) -> Awaitable[Observation]:
    return session.call(call)


def _record(task: Task, state: Any) -> ScoringRecord:
    said: Sequence[Mapping[str, Any]] = (
        {"role": "system", "content": task.rules},
        {"role": "user", "content": task.instruction},
        {"role": "assistant", "content": f"<answer>{_ANSWER}</answer>"},
    )
    answered = Event(number=0, turn=0, kind=EventKind.ANSWERED, text=_ANSWER)
    return ScoringRecord(task=task, messages=said, events=(answered,), final_state=state, stop=StopReason.ANSWER)


def _advantage(name: str) -> None:
    """What a learner asks of an advantage."""
    found, named = load_object(name, "learner.advantage"), f"learner.advantage = {name!r}"
    with foreign(f"{named}: called with rewards {list(_REWARDS)} and a group's id, it"):
        function = found() if isinstance(found, type) else found
        values = [float(value) for value in function(list(_REWARDS), "g000000")]
    if len(values) != len(_REWARDS) or not all(map(math.isfinite, values)):
        raise ConfigError(f"{named}: for rewards {list(_REWARDS)} it returned {values}, not as many finite numbers")


def try_here(config: Config, tasks: Sequence[Task]) -> None:
    """The same in this process, which then has imported all of it.

    Raises ConfigError as `rehearse` does."""
    if "learner.advantage" in (named := plugins(config)):
        _advantage(named["learner.advantage"])
    # An EpisodeError says that a simulator failed, which happens: the episodes that it happens to are masked.
    with suppress(EpisodeError):
        anyio.run(_episode, config, next((task for task in tasks if task.user is not None), tasks[0]))


def main() -> int:
    """Entry point of the process; returns its exit code."""
    try:
        try_here(load("/dev/stdin").config, load_pack(Path(sys.argv[1])).tasks)
    except ConfigError as error:
        sys.stderr.write(f"{error}\n")
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
