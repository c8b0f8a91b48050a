"""Tasks in the AgenticQwen format, imported, and episodes of them that follow a script."""

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from engine.chat.chat_format import ChatFormat
from engine.core.episode import run_episode
from engine.core.seams import EpisodePlan, ScoringRecord, Seams
from engine.importing.agenticqwen.format import AGENTICQWEN
from engine.importing.format import ImportOptions
from engine.importing.load import Imported, import_file
from engine.reward.rubric import OpenItem, RubricScorer
from engine.scripted.policy import GoldPolicy
from engine.serving.models import find_model
from engine.task import Task
from engine.types import Episode, Limits, Reward, Sampling, Verdict
from engine.world.offline import OfflineUser, OfflineWorld
from tests.parts.places import TESTS

OURS = TESTS / "data/agenticqwen_ours.json"
IMPORTED = import_file(AGENTICQWEN, OURS, ImportOptions())
DECIDED = import_file(AGENTICQWEN, OURS, ImportOptions(judge=False))
CHAT = ChatFormat.load(find_model("tiny").path, "auto")
NOTHING = ("<answer>Done.</answer>",)
_LIMITS = Limits(turns=40, tokens=1 << 20, completion_tokens=4096, wall_s=15, turn_s=10)


@dataclass(frozen=True)
class Lenient:
    """A judge who says that every subgoal is met, and nothing forbidden happened."""

    async def decide(self, items: Sequence[OpenItem], record: ScoringRecord) -> list[Verdict]:
        return [Verdict(id=item.id, part=part, met=part != "forbidden", evidence=None) for item, part in items]


def offline() -> Seams:
    """Seams with a world that knows no task yet: tasks of other tests may have the same ids."""
    return Seams(
        policy=GoldPolicy(CHAT),
        world=OfflineWorld(),
        user=OfflineUser(),
        scorer=RubricScorer(Lenient()),
        chat=CHAT,
        clock=time.monotonic,
    )


async def play(task: Task, lines: Sequence[str], seams: Seams | None = None) -> Episode:
    """One episode of a task in which the agent says these lines; in a world of its own where no seams are given."""
    seams = seams or offline()
    scripted = replace(task, meta={**task.meta, "gold": lines})
    plan = EpisodePlan(
        id="g000000.00",
        group_id="g000000",
        task=scripted,
        seed=0,
        version=0,
        adapter=None,
        limits=_LIMITS,
        sampling=Sampling(),
        queued_s=0.0,
    )
    assert isinstance(seams.chat, ChatFormat)
    policy = GoldPolicy(seams.chat, tasks=[scripted])
    return await run_episode(plan, replace(seams, policy=policy), lambda _: False)


async def rewarded(task: Task, lines: Sequence[str], seams: Seams | None = None) -> Reward:
    """The reward of such an episode."""
    played = await play(task, lines, seams)
    assert played.reward is not None, (task.id, played.error)
    return played.reward


async def proves(task: Task, seams: Seams | None = None) -> Reward:
    """Gold earns everything; every violator nothing, for what it violates; doing nothing less than everything.

    Gives the reward of doing nothing."""
    gold = task.meta["gold"]
    best = await rewarded(task, gold, seams)
    assert best.value == 1, (task.id, [verdict for verdict in best.items if not verdict.met])
    nothing = await rewarded(task, NOTHING, seams)
    decided = all(item.check is not None for item in task.rubric.subgoals)
    assert nothing.value == 0 if decided else nothing.value < 1
    violations = task.meta["violations"]
    assert violations.keys() == {item.id for item in task.rubric.forbidden if item.check}
    for item, act in violations.items():
        spoiled = await rewarded(task, [*gold[:-1], act, gold[-1]], seams)
        assert spoiled.value == 0, (task.id, item)
        assert item in {verdict.id for verdict in spoiled.items if verdict.met and verdict.part == "forbidden"}
    return nothing


def theirs_of(request: pytest.FixtureRequest) -> tuple[Imported, Imported]:
    """The file that was given: with a judge's items and without them."""
    path = file_of_theirs(request)
    return import_file(AGENTICQWEN, path, ImportOptions()), import_file(AGENTICQWEN, path, ImportOptions(judge=False))


def file_of_theirs(request: pytest.FixtureRequest) -> Path:
    """The file that was given; without one the test is skipped."""
    path: Path | None = request.config.getoption("--agenticqwen")
    if path is None:
        pytest.skip("tasks of AgenticQwen are not shipped: give a file with --agenticqwen (make test AGENTICQWEN=FILE)")
    return path
