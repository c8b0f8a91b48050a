"""engine.evals.recorded: what is recorded of an evaluation, and which adapter is best."""

from dataclasses import replace

import anyio
import pytest

from engine.chat.chat_format import ChatFormat
from engine.config.load import load
from engine.core.seams import Seams
from engine.errors import PolicyError, RunError
from engine.evals.recorded import Evaluations
from engine.reward.rubric import RubricScorer
from engine.rundir.layout import JsonLines, RunDir
from engine.scripted import GoldPolicy
from engine.stream.reader import iter_groups
from engine.stream.writer import TrajectoryWriter
from engine.synthesis.tiny_family import make_tiny_task
from engine.task import Split
from engine.world.offline import OfflineUser, OfflineWorld
from tests.parts.policy_parts import tiny_chat
from tests.parts.stream_groups import HEADER, SETTINGS

CHAT = tiny_chat()


class Failing(GoldPolicy):
    """A policy whose server is down for some turns."""

    def __init__(self, chat: ChatFormat, fails) -> None:
        super().__init__(chat)
        self.fails = fails

    async def complete(self, turn):
        """The gold line, or nothing."""
        if self.fails(turn.group_id):
            raise PolicyError("the server is down")
        return await super().complete(turn)


class Held:
    """Versions and a server that has them all."""

    run_id, loaded = "demo-1f0c2a9b", ()

    def __init__(self):
        self.versions, self.leased = self, 0

    async def serve(self, version):
        """Nothing to load."""

    def lease(self, version):
        """One more."""
        self.leased += 1

    def release(self, version):
        """One less."""
        self.leased -= 1


class Written:
    """A stream that keeps nothing."""

    async def write(self, group):
        """Acknowledged."""
        return group


@pytest.fixture
def run(tmp_path):
    """A run directory with three versions."""
    run = RunDir(tmp_path / "run")
    run.create()
    for version in range(3):
        run.adapter(version).mkdir()
    return run


def evaluations_of(run, fails=lambda _: False):
    """Evaluations of four validation tasks."""
    chat = CHAT
    seams = Seams(
        policy=Failing(chat, fails),
        world=OfflineWorld(),
        user=OfflineUser(),
        scorer=RubricScorer(),
        chat=chat,
        clock=anyio.current_time,
    )
    parts = {"run": run, "config": load("tiny").config, "seams": seams, "adapters": Held(), "writer": Written()}
    tasks = [replace(make_tiny_task(1, Split.VALIDATION, index), id=f"task-{index}") for index in range(4)]
    return Evaluations(**parts, tasks=tasks, flush=nothing, live=lambda _: None)


async def nothing():
    """No mapping to commit."""


def row(version, mean, masked=0):
    """A recorded validation."""
    return {"name": "validation", "version": version, "mean": mean, "masked": masked, "episodes": 4}


def test_a_validation_is_recorded_and_the_best_is_linked(run):
    """The version stays leased until it is linked, so that nobody deletes it in between."""
    evaluations = evaluations_of(run)
    result = anyio.run(evaluations.measure, "validation", 1)
    assert result is not None
    assert (result.episodes, result.masked) == (4, 0)
    assert evaluations.adapters.leased == 0
    assert (run.adapters / "best").readlink().name == "v00001"
    assert evaluations_of(run).measured("validation", 1)
    assert not evaluations_of(run).measured("validation", 2)


class Meddling:
    """A chat format that begins the conversation of one task with what no frame can hold."""

    def prompt(self, task):
        """As that of the model, and a message beside."""
        messages, ids, tools = CHAT.prompt(task)
        return [*messages, *([{"role": "tool", "content": object()}] if task.id == "task-2" else [])], ids, tools

    def __getattr__(self, name):
        return getattr(CHAT, name)


def test_what_is_measured_is_what_was_written(run):
    """An episode that cannot be written is masked by the writer: outside the mean, and counted."""
    evaluations = evaluations_of(run)
    evaluations.seams = replace(evaluations.seams, chat=Meddling())
    evaluations.writer = TrajectoryWriter(run.eval, HEADER, SETTINGS)

    async def measured():
        async with anyio.create_task_group() as tasks:
            await tasks.start(evaluations.writer.run)
            result = await evaluations.measure("validation", 1)
            await evaluations.writer.close()
        return result

    result = anyio.run(measured)
    episodes = [episode for group in iter_groups(run.eval) for episode in group.episodes]
    rewards = [episode.reward.value for episode in episodes if episode.scored]
    assert (result.episodes, result.masked, len(rewards)) == (4, 1, 3)
    assert result.mean == pytest.approx(sum(rewards) / 3)
    masked = {episode.task_id: episode.error for episode in episodes if episode.error}
    assert list(masked) == ["task-2"]
    assert "is not JSON serializable: object" in masked["task-2"]


def test_an_evaluation_that_scored_nothing_is_no_result(run):
    """A dead server is not a policy of reward 0: the run stops with a sentence, and nothing is recorded."""
    evaluations = evaluations_of(run, fails=lambda _: True)
    with pytest.raises(RunError, match="heldout_before: not one of"):
        anyio.run(replace_split(evaluations).measure, "heldout_before", 0)
    assert not evaluations_of(run).rows
    assert evaluations.adapters.leased == 0


def replace_split(evaluations):
    """The same tasks as held-out ones."""
    evaluations.tasks = [replace(task, split=Split.HELDOUT) for task in evaluations.tasks]
    return evaluations


def test_a_kill_between_a_row_and_its_link_is_made_good(run):
    """The next start links what the rows say; the best mean wins, the first of equals, and never one that is gone."""
    with JsonLines(run.eval / "evaluations.jsonl") as file:
        for value in (row(1, 0.5), row(2, 0.5), row(9, 0.9)):
            file.append(value)
    evaluations_of(run)
    assert (run.adapters / "best").readlink().name == "v00001"


def test_a_validation_that_scored_less_than_half_says_nothing(run):
    """One lucky episode of four makes no best adapter."""
    with JsonLines(run.eval / "evaluations.jsonl") as file:
        for value in (row(1, 0.4), row(2, 1.0, masked=3)):
            file.append(value)
    evaluations_of(run)
    assert (run.adapters / "best").readlink().name == "v00001"
