"""Tasks in the AgenticQwen format where one real SGLang serves the tiny model as agent, user, tools and judge at once.

The tiny model knows one task family and no language, so all that it says here is nonsense in the right shape.
"""

import math
import time

import anyio
import pytest

from engine.config.load import load
from engine.evals.split import Suite, evaluate
from engine.packs.pack import load_pack
from engine.preflight.manifest import create
from engine.run.compose import build_parts
from engine.run.served_policy import watched
from engine.rundir.layout import RunDir, write_json
from engine.serving.models import find_models
from engine.serving.served import served
from engine.stream.reader import iter_groups
from engine.types import Outcome
from engine.verify.run import verify_run
from tests.parts.agenticqwen_plays import OURS, file_of_theirs
from tests.parts.chaos_runs import assert_classified
from tests.parts.judged_runs import invoke
from tests.parts.llm_parts import TINY
from tests.parts.played_runs import LLM
from tests.parts.recorded_runs import write_stream
from tests.parts.sglang_environment import needs_sglang

EPISODES = 12
"""At least; each task as often as it takes."""
SETTINGS = {
    **LLM,
    "run.name": "nonsense",
    "policy.launch": "sglang",
    "policy.device": "cpu",
    "endpoints.sim.api": "sglang",
    "endpoints.sim.model": TINY,
    "endpoints.sim.max_tokens": 160,
    "endpoints.sim.timeout_s": 200,
    "limits.turns": 4,
    "limits.tokens": 8192,
    "limits.completion_tokens": 64,
    "limits.turn_s": 200,
    "limits.wall_s": 240,
    "eval.every": 0,
    "eval.live_slots": 32,
}
TOOLS_ALONE = {key: value for key, value in SETTINGS.items() if not key.startswith(("user.", "scorer."))}


async def play(run, config, tasks, run_id):
    """An episode of each."""
    groups, suite = [], Suite.of(config, "eval", list(enumerate(tasks)))

    async def emit(group):
        groups.append(group)
        return group

    async with (
        build_parts(run, config, time.monotonic, lambda _: None, ready_s=200) as parts,
        watched(parts.served, run_id, None) as name,
    ):
        await evaluate(suite, parts.seams, 0, name, emit, lambda _: None)
        await parts.flush()
    return groups


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """A URL of SGLang with the tiny model."""
    config = load("dry", [f"{key}={value}" for key, value in SETTINGS.items()]).config
    with served(RunDir(tmp_path_factory.mktemp("served")), find_models(config).into(config)) as [url]:
        yield url


@pytest.fixture(params=["ours", "theirs"])
def file(request):
    """Our tasks; those of a file that was given."""
    return OURS if request.param == "ours" else file_of_theirs(request)


def played(base, file, url, settings, *options):
    """Every episode of a run in which the server at that URL plays whoever is not played by rules.

    What is scored is scored alike from the record."""
    pack = base / "pack.jsonl"
    assert invoke("pack", "import", "agenticqwen", file, "--output", pack, *options)[0] == 0
    chosen = {**settings, "run.dir": base, "tasks.pack": pack, "endpoints.sim.url": url}
    config = load("dry", [f"{key}={value}" for key, value in chosen.items()]).config
    run = create(config)
    write_json(run.path / "servers.json", {"urls": [url]})
    tasks = load_pack(run.pack).tasks
    tasks = [*tasks] * math.ceil(EPISODES / len(tasks))
    write_stream(run, run.eval, anyio.run(play, run, find_models(config).into(config), tasks, run.run_id))
    episodes = [episode for group in iter_groups(run.eval) for episode in group.episodes]
    assert len(episodes) == len(tasks)
    for episode in episodes:
        assert_classified(episode)
        assert episode.outcome is not Outcome.INFRA_ERROR, episode.error
        assert episode.reward is None or episode.reward.value < 1
    again = anyio.run(verify_run, run, (), lambda done, total: None)
    assert again.sound
    assert again.episodes == sum(episode.scored for episode in episodes)
    return episodes


@pytest.mark.slow
@needs_sglang
def test_nonsense_in_every_role_is_classified(model, file, tmp_path):
    """Nothing crashes, and an episode that a simulator spoiled is masked as its fault."""
    outcomes = {episode.outcome for episode in played(tmp_path, file, model, SETTINGS)}
    assert Outcome.USER_FAULT in outcomes


@pytest.mark.slow
@needs_sglang
def test_nonsense_of_an_agent_is_never_rewarded(model, file, tmp_path):
    """Where users answer by rules and checks decide, every episode is scored, and none as a success."""
    outcomes = {episode.outcome for episode in played(tmp_path, file, model, TOOLS_ALONE, "--no-judge")}
    assert outcomes == {Outcome.AGENT_FAIL}
