"""Real runs in which somebody hands in what no record can hold: they end well, and so does a resume that meets it."""

import json
import re
import shutil
import sqlite3
import subprocess
import sys
from itertools import count
from pathlib import Path

import anyio
import orjson
import pytest
from aiohttp import web
from anyio import to_thread

from engine.config.load import load
from engine.llm.journal import Journal, read_journal
from engine.preflight.manifest import create
from engine.rundir.layout import RunDir
from engine.rundir.rows import write_rows
from engine.scripted.endpoint import ScriptedEndpoint
from engine.stream.reader import iter_groups
from engine.types import Outcome
from tests.parts.llm_parts import listening
from tests.parts.places import ROOT

pytestmark = pytest.mark.slow
EXAMPLES = ROOT / "docs" / "examples"
PROGRAM = Path(sys.executable).with_name("synth-engine")
SHORT = {
    "run.steps": 1,
    "schedule.group_size": 2,
    "schedule.groups_per_step": 4,
    "eval.every": 0,
    "eval.heldout_tasks": 0,
    "stream.low_water_mb": 0,
}
USER = {"tasks.pack": "showcase", "user.kind": "llm", "user.endpoint": "sim", "endpoints.sim.model": "m"}


def words(settings):
    """`--set` for each."""
    return [word for key, value in settings.items() for word in ("--set", f"{key}={value}")]


def program(directory, *arguments):
    """The installed command, run in a directory."""
    done = subprocess.run([PROGRAM, *map(str, arguments)], cwd=directory, capture_output=True, text=True, check=False)
    return done.returncode, done.stdout + done.stderr


def cut_in_two(text):
    """A user's reply with half an emoji at its end, as the escape that many a server sends."""
    reply = orjson.loads(text)
    reply["sentences"][-1]["says"] += " \ud83d"
    return json.dumps(reply)


def cutting(which):
    """The scripted endpoint; `which(number, temperature)` says whose reply it cuts in two."""
    numbers = count()

    @web.middleware
    async def cut(request, handler):
        asked, response = orjson.loads(await request.read()), await handler(request)
        if not which(next(numbers), asked["temperature"]):
            return response
        reply = orjson.loads(response.body)
        message = reply["choices"][0]["message"]
        message["content"] = cut_in_two(message["content"])
        return web.Response(body=orjson.dumps(reply), content_type="application/json")

    application = ScriptedEndpoint().application()
    application.middlewares.append(cut)
    return application


def refusals(run):
    """Of the journal: how many replies were accepted, and why the others were not."""
    with sqlite3.connect(run.journal) as journal:
        rows = [refusal for (refusal,) in journal.execute("SELECT refusal FROM exchanges")]
    return rows.count(""), [refusal for refusal in rows if refusal]


def episodes_of(run):
    """All training episodes."""
    return [episode for group in iter_groups(run.trajectories) for episode in group.episodes]


def assert_sound(directory, run):
    """Every promise was kept, and the same comes out again."""
    for command in ("audit", "verify"):
        code, said = program(directory, command, run.path)
        assert code == 0, said


@pytest.mark.parametrize(
    "which",
    [
        pytest.param(lambda _, temperature: temperature == 0, id="every first reply"),
        pytest.param(lambda number, temperature: number % 2 or temperature > 0, id="half of them, for ever"),
    ],
)
async def test_a_run_whose_users_say_half_an_emoji_ends_well(tmp_path, which):
    """It is asked for again, with the reason; who never says anything else loses that episode only."""
    async with listening(cutting(which)) as url:
        settings = {**SHORT, **USER, "endpoints.sim.url": url}
        arguments = ("run", "--config", "dry", "--plain", "--name", "sim", *words(settings))
        code, said = await to_thread.run_sync(program, tmp_path, *arguments)
    assert code == 0, said
    run = RunDir(tmp_path / "runs" / "sim")
    await to_thread.run_sync(assert_sound, tmp_path, run)
    accepted, refused = await to_thread.run_sync(refusals, run)
    assert accepted
    assert refused
    assert {refusal.partition("says: ")[2] for refusal in refused} == {
        "half a surrogate pair (\\ud83d) is no character"
    }
    for episode in await to_thread.run_sync(episodes_of, run):
        assert episode.scored or episode.outcome is Outcome.USER_FAULT


async def test_a_resume_gets_past_a_journal_that_holds_half_an_emoji(tmp_path):
    """As an answer: nothing was written of the run that it ended. It is refused there, and asked for once more."""
    async with listening(ScriptedEndpoint().application()) as url:
        settings = {**SHORT, **USER, "endpoints.sim.url": url}
        arguments = ("run", "--config", "dry", "--plain", "--name", "sim", *words(settings))
        code, said = await to_thread.run_sync(program, tmp_path, *arguments)
        assert code == 0, said
        poisoned = await to_thread.run_sync(poisoned_run, tmp_path, settings)
        code, said = await to_thread.run_sync(program, tmp_path, "run", "--resume", poisoned.path, "--plain")
    assert code == 0, said
    await to_thread.run_sync(assert_sound, tmp_path, poisoned)
    accepted, refused = await to_thread.run_sync(refusals, poisoned)
    assert 0 < len(refused) <= accepted
    assert all("half a surrogate pair" in refusal for refusal in refused)
    assert all(episode.scored for episode in await to_thread.run_sync(episodes_of, poisoned))


def poisoned_run(directory, settings):
    """A run that has not written a group; its journal has the answers of the run `sim`, each cut in two."""
    answers = anyio.run(answers_of, RunDir(directory / "runs" / "sim"))
    overrides = {**settings, "run.name": "poisoned", "run.dir": directory / "runs"}
    run = create(load("dry", [f"{key}={value}" for key, value in overrides.items()]).config)
    write_rows(Journal, run.journal, [answer._replace(reply=cut_in_two(answer.reply)) for answer in answers])
    return run


async def answers_of(run):
    """The exchanges that answered a question."""
    async with read_journal(run.journal) as journal:
        return [exchange async for exchange in journal.exchanges() if not exchange.refusal]


MINE = """
from dataclasses import replace

import numpy as np
from brief_scorer import BriefScorer
from library_world import LibraryWorld
from typing_user import TypingUser


class World:
    async def open(self, task, seed):
        return Session(await LibraryWorld().open(task, seed), seed % 9)


class Session:
    def __init__(self, inner, kind):
        self.inner, self.kind = inner, kind

    async def call(self, call):
        said = await self.inner.call(call)
        return replace(said, content=said.content + "\\ud83d") if self.kind == 1 else said

    async def close(self):
        state = await self.inner.close()
        return {2: {"lent": set(state["lent"])}, 3: {"lent": np.int64(len(state["lent"]))}, 4: {1: state},
                5: {"ratio": float("nan")}, 6: {"more": [2**64]}}.get(self.kind, state)


class User(TypingUser):
    async def open(self, task, seed, session):
        inner = await super().open(task, seed, session)
        return Speaker(inner) if seed % 9 == 7 else inner


class Speaker:
    def __init__(self, inner):
        self.inner = inner

    async def reply(self, message):
        said = await self.inner.reply(message)
        return replace(said, revealed=set(said.revealed))


class Scorer(BriefScorer):
    async def score(self, record):
        reward = await super().score(record)
        odd = len(record.events) > 1 and sum(len(said["content"]) for said in record.messages) % 4 == 1
        return replace(reward, value=np.float64(reward.value)) if odd else reward
"""
KINDS = (
    r"simulator_fault_tool: .*: the Observation: half a surrogate pair \(\\ud83d\) is no character",
    r"simulator_fault_tool: .*close world: UnrecordableError: lent: set is no JSON value",
    r"simulator_fault_tool: .*lent: numpy.int64 is no JSON value",
    r"simulator_fault_tool: .*a key is int, not str",
    r"simulator_fault_tool: .*ratio: nan is no JSON number",
    r"simulator_fault_tool: .*more.0: an integer does not fit into 64 bits",
    r"simulator_fault_user: .*what the Reply revealed is set, not a tuple",
    r"simulator_fault_judge: .*the Reward: value: numpy.float64 is no JSON value",
)


def test_a_run_with_plugins_that_hand_in_what_no_record_holds_ends_well(tmp_path):
    """World, user and scorer of somebody's own: the rehearsal saw nothing of it, each episode says what it was."""
    shutil.copytree(EXAMPLES, tmp_path, dirs_exist_ok=True)
    (tmp_path / "mine.py").write_text(MINE)
    mine = {"world.kind": "mine:World", "user.kind": "mine:User", "scorer.kind": "mine:Scorer"}
    settings = {**mine, "run.steps": 4, "schedule.group_size": 9, "stream.low_water_mb": 0, "eval.heldout_tasks": 0}
    arguments = ("run", "--config", "library.toml", "--plain", *words(settings))
    code, said = program(tmp_path, *arguments)
    assert code == 0, said
    run = RunDir(tmp_path / "runs" / "library")
    assert_sound(tmp_path, run)
    episodes = episodes_of(run)
    errors = [f"{episode.outcome}: {episode.error}" for episode in episodes if not episode.scored]
    assert any(episode.scored for episode in episodes)
    assert [kind for kind in KINDS if not any(re.search(kind, error) for error in errors)] == []
    assert [error for error in errors if not any(re.search(kind, error) for kind in KINDS)] == []
