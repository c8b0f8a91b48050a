"""Language models as user, tools and judge: how well they keep their contracts, measured on hand-written tasks.

A scripted policy follows each task's gold script, asking in other words than it (`meta.asks`), while the models behind
`[endpoints.*]` play everybody else. The tools are played bare: without the effects and answers that the task declares,
which are the truth that the model's answers are compared with. The judge decides the items that have checks.

    python -m bench simulators --tasks 10 --set endpoints.sim.url=http://127.0.0.1:30000

Without a `--set endpoints.sim...` the scripted endpoint plays, by rules.
"""

from __future__ import annotations

import argparse
import re
import tempfile
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import anyio
import orjson

from bench._processes import serving
from engine.chat.chat_format import ChatFormat
from engine.config.load import load
from engine.config.tree import Config
from engine.core.episode import run_episode
from engine.core.seams import EpisodePlan, ScoringRecord, Seams, Session
from engine.errors import RewardError
from engine.llm.asking import Tally
from engine.packs.pack import load_pack
from engine.preflight.manifest import pack_file
from engine.reward.judges import judge_of
from engine.reward.rubric import Judge, RubricScorer, rubric_items
from engine.run.compose import mapped_world, user_of
from engine.run.models import SimulatorModels, open_models
from engine.rundir.layout import RunDir
from engine.scripted.policy import GoldPolicy
from engine.serving.models import find_model
from engine.task import Task, Tool, WorldSpec
from engine.types import Episode, Json, Limits, Observation, Sampling, ToolCall
from engine.world import admission
from engine.world.mapped import MappedWorld
from engine.world.mapping import MappingCounts
from engine.world.offline import OfflineWorld
from engine.world.offline_user import asked

_LIMITS = Limits(turns=40, tokens=1_000_000, completion_tokens=4_096, wall_s=7_200, turn_s=1_800)
_QUESTION = re.compile(r"<question>(.*?)</question>", re.DOTALL)
_SET = ("world.kind=llm", "world.endpoint=sim", "user.kind=llm", "user.endpoint=sim", "scorer.judge=sim")


@dataclass(slots=True, kw_only=True)
class Found:
    """What the episodes showed."""

    outcomes: Counter[str] = field(default_factory=Counter)
    truth: Counter[bool] = field(default_factory=Counter)
    """Answers that say what the task declares, and those that do not."""
    agreement: Counter[bool] = field(default_factory=Counter)
    """Verdicts of the judge that are the check's, and those that are not."""
    unjudged: int = 0
    turns: int = 0
    seconds: float = 0.0


def bare(task: Task) -> Task:
    """The task without the effects and answers that it declares: its tools are the simulator's."""
    played = tuple(replace(tool, effect={"write": True} if tool.writes else None) for tool in task.tools)
    return replace(task, tools=played, world=WorldSpec(state=task.world.state))


def other_words(task: Task) -> Task:
    """The task with a gold script that asks in the other words that `meta.asks` has."""
    assert task.user is not None
    asks, facts = task.meta.get("asks", {}), task.user.facts

    def said(completion: str) -> str:
        question = _QUESTION.search(completion)
        wanted = list(asked(facts, question[1])) if question else []
        other = asks.get(wanted[0]) if len(wanted) == 1 else None
        return f"<question>{other[-1]}</question>" if other else completion

    return replace(task, meta={**task.meta, "gold": [said(completion) for completion in task.meta["gold"]]})


@dataclass(frozen=True, slots=True)
class ComparedWorld:
    """A bare world beside the one that the task declares; every reading call is also made in another spelling."""

    world: MappedWorld
    declared: Mapping[str, Task]
    found: Found

    async def open(self, task: Task, seed: int) -> ComparedSession:
        """Two sessions."""
        truth = self.declared[task.id]
        return ComparedSession(
            await self.world.open(task, seed), await OfflineWorld().open(truth, seed), truth, self.found
        )


@dataclass(frozen=True, slots=True)
class ComparedSession:
    """One episode in both worlds."""

    session: Session
    truth: Session
    task: Task
    found: Found

    async def call(self, call: ToolCall) -> Observation:
        """The simulator's answer, compared with the declared one."""
        said, true = await self.session.call(call), await self.truth.call(call)
        tool = self.task.tool(call.name)
        if tool is not None and said.ok and true.ok:
            self._compare(tool, orjson.loads(said.content), orjson.loads(true.content))
            if not tool.writes and (other := _other_spelling(tool, call)) is not None:
                await self.session.call(other)
        elif tool is not None:
            self.found.truth[said.ok == true.ok] += 1
        return said

    def _compare(self, tool: Tool, said: Json, true: Json) -> None:
        if tool.effect is not None and "read" in tool.effect:
            self.found.truth[admission.content(said) == admission.content(true)] += 1

    async def close(self) -> Json:
        """End both; the declared state counts."""
        await self.session.close()
        return await self.truth.close()


def _other_spelling(tool: Tool, call: ToolCall) -> ToolCall | None:
    """The same call with a free text in capitals, if it has one."""
    declared = tool.parameters.get("properties", {})
    for name, value in call.arguments.items():
        free = not {"enum", "const", "pattern", "format"} & declared.get(name, {}).keys()
        if isinstance(value, str) and free and value.upper() != value and not any(map(str.isdigit, value)):
            return ToolCall(name=call.name, arguments={**call.arguments, name: value.upper()})
    return None


async def play(task: Task, number: int, seams: Seams) -> Episode:
    """One episode of the gold script."""
    plan = EpisodePlan(
        id=f"g000000.{number:02d}",
        group_id="g000000",
        task=task,
        seed=number,
        version=0,
        adapter=None,
        limits=_LIMITS,
        sampling=Sampling(),
        queued_s=0.0,
    )
    return await run_episode(plan, seams, lambda _: False)


async def judge(judge: Judge, task: Task, episode: Episode, found: Found) -> None:
    """Let the model decide what checks decided."""
    assert episode.reward is not None
    checked = [entry for entry in rubric_items(task.rubric) if entry.item.check is not None]
    record = ScoringRecord.of(task, episode)
    try:
        verdicts = await judge.decide(checked, record)
    except RewardError:
        found.unjudged += 1
        return
    truth = {verdict.id: verdict.met for verdict in episode.reward.items}
    for verdict in verdicts:
        found.agreement[verdict.met == truth[verdict.id]] += 1


async def measure(config: Config, models: SimulatorModels, tasks: Sequence[Task], world: MappedWorld) -> Found:
    """Every task, in other words than the gold script's."""
    found, scripts = Found(), list(map(other_words, tasks))
    chat = await anyio.to_thread.run_sync(ChatFormat.load, find_model("tiny").path, "auto")
    compared = ComparedWorld(world, {task.id: task for task in tasks}, found)
    arbiter, begun = judge_of(config, models.askers[config.scorer.judge]), time.monotonic()

    async def one(number: int, task: Task) -> None:
        seams = Seams(
            policy=GoldPolicy(chat, tasks=[task]),
            world=compared,
            user=user_of(config, models),
            scorer=RubricScorer(),
            chat=chat,
            clock=time.monotonic,
        )
        episode = await play(bare(task), number, seams)
        found.outcomes[episode.outcome] += 1
        found.turns += episode.turns
        print(f"  {task.id}: {episode.outcome} {episode.error[:160]}", flush=True)
        if episode.reward is not None:
            await judge(arbiter, task, episode, found)
        # A small model on a few cores takes long: what it said by now can be read, and gone on from.
        await models.flush()

    async with anyio.create_task_group() as group:
        for number, task in enumerate(scripts):
            group.start_soon(one, number, task)
    found.seconds = time.monotonic() - begun
    return found


# --- what is told ---------------------------------------------------------------------------------------------------


def told(found: Found, tallies: Mapping[str, Tally], counts: MappingCounts) -> list[str]:
    """The lines of the report."""
    episodes = sum(found.outcomes.values())
    lines = [f"{episodes} episodes, {found.turns} turns, {found.seconds:.0f} s: {_counted(found.outcomes)}"]
    for role, tally in tallies.items():
        if tally.asked:
            refused = ", ".join(
                f"{kind} {_share(count, tally.replies)}" for kind, count in sorted(tally.refused.items())
            )
            lines.append(
                f"{role}: {tally.asked / episodes:.1f} questions and {tally.replies / episodes:.1f} calls an episode, "
                f"{(tally.prompt_tokens + tally.completion_tokens) / episodes:,.0f} tokens an episode; of "
                f"{tally.replies} replies refused: {refused or 'none'}; given up {_share(tally.given_up, tally.asked)}"
            )
    made = counts.exact + counts.seeded + counts.equivalent + counts.simulated
    shares = ", ".join(f"{name} {_share(count, made)}" for name, count in counts._asdict().items())
    lines.append(f"mapping: {made} answers: {shares}")
    lines.append(f"tools say what the task declares: {_right(found.truth)}")
    lines.append(f"judge says what the check says: {_right(found.agreement)}; {found.unjudged} episodes unjudged")
    return lines


def _counted(counts: Counter[str]) -> str:
    return ", ".join(f"{name} {count}" for name, count in counts.most_common())


def _share(part: int, whole: int) -> str:
    return f"{part} ({part / whole:.0%})" if whole else "0"


def _right(counts: Counter[bool]) -> str:
    return f"{_share(counts[True], counts.total())} of {counts.total()}"


async def run(config: Config, tasks: Sequence[Task], directory: Path) -> None:
    """Measure, and print; every exchange is in the journal in `directory`."""
    async with open_models(RunDir(directory), config) as models:
        world = mapped_world(config, models, None)
        found = await measure(config, models, tasks, world)
        tallies: dict[str, Any] = {}
        for asker in models.askers.values():
            tallies |= {role: tally for role, tally in asker.tallies.items() if tally.asked}
        print("\n".join(told(found, tallies, world.mapping.counts)))
        for endpoint in models.endpoints.values():
            print(f"endpoint {endpoint.name}: {endpoint.account}")


def main(arguments: Sequence[str]) -> None:
    """See the module docstring."""
    parser = argparse.ArgumentParser(prog="python -m bench simulators", description=__doc__)
    parser.add_argument("--tasks", type=int, default=10, help="tasks, from the first")
    parser.add_argument("--pack", default="showcase", help="a pack whose tasks have gold scripts")
    parser.add_argument("--set", dest="overrides", action="append", default=[], metavar="KEY=VALUE")
    parser.add_argument("--keep", metavar="DIR", type=Path, help="keep journal.sqlite there, and go on from it")
    options = parser.parse_args(arguments)
    with ExitStack() as opened:
        overrides = options.overrides
        if not any(override.startswith("endpoints.sim.") for override in overrides):
            overrides = [
                f"endpoints.sim.url={opened.enter_context(serving('engine.scripted', 'endpoint'))}",
                *overrides,
            ]
        directory = options.keep or Path(opened.enter_context(tempfile.TemporaryDirectory(prefix="simulators-")))
        directory.mkdir(parents=True, exist_ok=True)
        config = load(None, [*_SET, *overrides]).config
        anyio.run(run, config, load_pack(pack_file(options.pack)).tasks[: options.tasks], directory)
