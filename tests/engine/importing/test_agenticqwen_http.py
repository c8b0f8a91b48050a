"""Tasks in the AgenticQwen format over HTTP: the scripted endpoint's process plays user, tools and judge.

What an episode meets is a run's: contracts, mapping, journal, the endpoint's account. The policy alone is in process:
the mock policy server plays no gold script. Prose is beyond a judge by rules, so the endpoint has the verdicts on gold,
and on doing nothing, as a cassette; violators it judges by its rules.
"""

import time
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, TypeVar

import anyio
import orjson
import pytest

from engine.config.load import load
from engine.config.tree import Config
from engine.importing.load import Imported
from engine.llm.question import Admit, ModelQuestion
from engine.reward.judge import LlmJudge
from engine.reward.rubric import RubricScorer
from engine.run.compose import build_parts
from engine.rundir.layout import RunDir
from engine.scripted.cassette import digest
from engine.serving.models import find_models
from engine.task import Task
from tests.parts.agenticqwen_plays import DECIDED, IMPORTED, NOTHING, offline, play, proves, theirs_of
from tests.parts.chaos_runs import scripted_endpoint
from tests.parts.llm_parts import TINY
from tests.parts.played_runs import LLM

_T = TypeVar("_T")


@dataclass
class Author:
    """An asker who knows what it judges: gold meets every subgoal, and nothing else happens.

    Its verdicts are kept, as a cassette."""

    gold: bool = False
    rows: list[dict[str, Any]] = field(default_factory=list)

    async def ask(self, question: ModelQuestion, admit: Admit[_T]) -> _T:
        """The last event shows what gold achieved."""
        last = question.document["events"][-1]["number"]
        said = {
            item["id"]: last if self.gold and item["part"] != "forbidden" else None
            for item in question.document["items"]
        }
        self.rows.append({"sha256": digest(question.document), "reply": said})
        return admit(said, question.document)


async def cassette(tasks: Iterable[Task]) -> bytes:
    """What the author of the tasks says of their gold episodes, and of doing nothing."""
    author = Author()
    seams = replace(offline(), scorer=RubricScorer(LlmJudge(author)))
    for task in tasks:
        for author.gold, lines in ((True, task.meta["gold"]), (False, NOTHING)):
            await play(task, lines, seams)
    return b"".join(orjson.dumps(row, option=orjson.OPT_APPEND_NEWLINE) for row in author.rows)


def configured(url: str, api: str) -> Config:
    """Users, tools and judge behind that URL."""
    named = {
        **LLM,
        "user.profile": "cooperative",
        "endpoints.sim.url": url,
        "endpoints.sim.api": api,
        "endpoints.sim.model": TINY,
    }
    config = load("dry", [f"{key}={value}" for key, value in named.items()]).config
    return find_models(config).into(config)


async def proves_all(made: Imported, config: Config, directory: Path) -> dict[str, float]:
    """Every task, all at once, as a run would play it; gives the account of who played."""

    async def one(task: Task) -> None:
        assert (await proves(task, parts.seams)).value == 0, task.id

    async with build_parts(RunDir(directory), config, time.monotonic, lambda _: None) as parts:
        async with anyio.create_task_group() as group:
            for task in made.tasks:
                group.start_soon(one, task)
        await parts.flush()
        return parts.account()


def proved(made: Imported, api: str, directory: Path) -> None:
    """By the endpoint's process; nothing that it says is refused, and nobody is asked in vain."""
    recorded = directory / "cassette.jsonl"
    recorded.write_bytes(anyio.run(cassette, made.tasks))
    with scripted_endpoint(directory / "ledger", "--latency-s", "0", "--cassette", str(recorded)) as url:
        account = anyio.run(proves_all, made, configured(url, api), directory)
    assert account["user/replies_count"] > 0
    assert account["tool/replies_count"] > 0
    assert ("judge/replies_count" in account) == bool(recorded.stat().st_size)
    assert [key for key, count in account.items() if count and ("refused" in key or "given_up" in key)] == []
    assert account["endpoint.sim/failed_count"] == 0


routes = pytest.mark.parametrize("api", ["openai", "sglang"])
ways = pytest.mark.parametrize("way", [0, 1], ids=["judged", "decided"])


@routes
@ways
def test_gold_passes_and_violators_and_doing_nothing_do_not(way, api, tmp_path):
    """With a judge's items and without them, by each route."""
    proved((IMPORTED, DECIDED)[way], api, tmp_path)


@routes
@ways
def test_theirs_are_proved(request, way, api, tmp_path):
    """The same with the tasks of the file that was given."""
    proved(theirs_of(request)[way], api, tmp_path)
