"""The scripted seams: good enough to exercise an engine, and honest about the contracts they stand in for."""

import subprocess
import sys
from contextlib import AbstractContextManager
from pathlib import Path

import aiohttp
import anyio
import orjson
import pytest
from safetensors.numpy import load_file

from engine.config.load import dump, validate
from engine.core.episode import run_episode
from engine.core.seams import EpisodePlan, Seams
from engine.errors import ConfigError
from engine.packs.pack import load_pack
from engine.reward.rubric import RubricScorer
from engine.rundir.layout import RunDir, read_json, read_lines
from engine.scripted import GoldPolicy, SlowPolicy
from engine.scripted.faults import Faults, ServerFault
from engine.scripted.script import Character, continuation
from engine.scripted.server import MockServer
from engine.scripted.zero_adapter import zero_adapter
from engine.stream.segment import CLOSED
from engine.task import Task
from engine.types import Episode, Limits, Outcome, Sampling
from engine.world.offline import OfflineUser, OfflineWorld
from tests.parts.children import python
from tests.parts.places import ASSETS
from tests.parts.policy_parts import policy_of, serving, tiny_chat, tiny_model, turn
from tests.parts.stream_groups import group, write_segment
from tests.parts.waiting import wait_until

CHAT = tiny_chat()
PACKS = ASSETS / "packs"
TINY = load_pack(PACKS / "tiny.jsonl.zst").tasks[:60]
SHOWCASE = load_pack(PACKS / "showcase.jsonl").tasks
LIMITS = Limits(turns=40, tokens=30_000, completion_tokens=2000, wall_s=60, turn_s=10)


async def play(policy, task: Task, index: int = 0) -> Episode:
    """One episode on the offline world."""
    plan = EpisodePlan(
        id=f"g000007.{index:02d}",
        group_id="g000007",
        task=task,
        seed=1,
        version=0,
        adapter=None,
        limits=LIMITS,
        sampling=Sampling(),
        queued_s=0.0,
    )
    seams = Seams(
        policy=policy,
        world=OfflineWorld(),
        user=OfflineUser(),
        scorer=RubricScorer(),
        chat=CHAT,
        clock=anyio.current_time,
    )
    return await run_episode(plan, seams, lambda _: False)


async def test_the_tiny_script_earns_the_full_reward_when_it_makes_no_mistake(monkeypatch):
    """Reading rules, tools and facts from the text alone, the script solves every task of the family."""
    monkeypatch.setattr(Character, "drawn", lambda _: Character())
    for task in TINY:
        episode = await play(GoldPolicy(CHAT), task)
        assert (episode.outcome, episode.error) == (Outcome.AGENT_OK, ""), task.id


async def test_seeded_mistakes_make_rewards_vary():
    """Siblings differ in reward and in each of its parts; the same seed makes the same mistakes."""
    first = [await play(GoldPolicy(CHAT, seed=3), TINY[0], index) for index in range(24)]
    again = [await play(GoldPolicy(CHAT, seed=3), TINY[0], index) for index in range(24)]
    values = [episode.reward.value for episode in first]
    assert values == [episode.reward.value for episode in again]
    assert len(set(values)) >= 3
    assert 0.3 < sum(values) / len(values) < 0.95


async def test_a_gold_script_of_a_pack_is_played():
    """Given the tasks, the policy says what meta.gold says, and the showcase pack rewards it fully."""
    for task in SHOWCASE[:5]:
        episode = await play(GoldPolicy(CHAT, tasks=SHOWCASE), task)
        assert episode.outcome is Outcome.AGENT_OK, task.id


async def test_scripted_tokens_are_consistent():
    """Ids decode to the text, log-probabilities are finite and negative, one each; a limit cuts both."""
    completion = await GoldPolicy(CHAT).complete(turn(CHAT))
    assert CHAT.decode(completion.ids) == completion.text
    assert len(completion.ids) == len(completion.logprobs)
    assert all(-1 <= value < 0 for value in completion.logprobs)
    short = Limits(turns=1, tokens=100, completion_tokens=2, wall_s=1, turn_s=1)
    cut = await GoldPolicy(CHAT).complete(turn(CHAT, limits=short))
    assert (len(cut.ids), len(cut.logprobs), cut.stop) == (2, 2, "length")


async def test_a_slow_policy_takes_its_time(monkeypatch):
    """Between half and one and a half of its latency."""
    monkeypatch.setattr(SlowPolicy, "latency_s", 0.1)
    started = anyio.current_time()
    await SlowPolicy(CHAT).complete(turn(CHAT))
    assert 0.05 <= anyio.current_time() - started < 1.0


def test_faults_come_at_their_rates_and_repeat():
    """The draw is seeded, and rates are what they say."""
    first, again = (Faults(rates={ServerFault.ERROR: 0.2, ServerFault.HANG: 0.1}, seed=1) for _ in range(2))
    drawn = [first.draw() for _ in range(2000)]
    assert drawn == [again.draw() for _ in range(2000)]
    assert 300 < drawn.count(ServerFault.ERROR) < 500
    assert 130 < drawn.count(ServerFault.HANG) < 270
    assert first.drawn == {fault: drawn.count(fault) for fault in (ServerFault.ERROR, ServerFault.HANG)}


@pytest.mark.parametrize(
    ("text", "reason"), [("boom=0.1", "names are error"), ("error=x", "name=prob"), ("error=1,hang=1", "more than 1")]
)
def test_wrong_fault_rates_are_refused(text, reason):
    """The part that is wrong is named, with what may stand there."""
    with pytest.raises(ConfigError, match=reason):
        Faults.rates_of(text)


async def test_a_server_that_pauses_on_load_holds_requests_in_flight(tmp_path):
    """The planted pause: a request in flight across a load takes at least as long as the load."""
    adapter = tmp_path / "v00000"
    await anyio.Path(adapter).mkdir()
    await anyio.Path(adapter, "adapter_config.json").write_text("{}")
    server = MockServer(chat=CHAT, latency_s=0.1, faults=Faults(pause_on_load_s=0.6))
    async with serving(server) as url, policy_of(CHAT, url) as (policy, servers):
        async with anyio.create_task_group() as tg:
            started = anyio.current_time()
            tg.start_soon(policy.complete, turn(CHAT, adapter=None))
            await servers.load("demo-1f0c2a9b-v00000", adapter)
        assert anyio.current_time() - started > 0.6


async def test_the_mock_server_tells_which_faults_it_played():
    """By name, in `/server_info`."""
    faulty = MockServer(chat=CHAT, faults=Faults(rates={ServerFault.ERROR: 1.0}), latency_s=0.0)
    async with serving(faulty) as url, aiohttp.ClientSession() as session:
        async with session.post(f"{url}/generate", json={"rid": "a"}) as failed:
            assert failed.status == 500
        async with session.get(f"{url}/server_info") as reply:
            assert (await reply.json())["mock"]["faults"] == {"error": 1}


async def test_the_mock_server_is_a_process(tmp_path):
    """Started by its command line it says where it listens, answers, and ends on SIGTERM."""
    command = [sys.executable, "-m", "engine.scripted", "server", "--model", str(tiny_model()), "--latency-s", "0.01"]
    async with await anyio.open_process(command, stderr=None) as process:
        try:
            url = orjson.loads(await process.stdout.receive())["url"]
            async with policy_of(CHAT, url) as (policy, servers):
                assert (await policy.complete(turn(CHAT, adapter=None))).server == url
                assert (await servers.loads()).queued == 0
        finally:
            process.terminate()
        assert await process.wait() == 0


def simulated_run(base: Path, steps: int, pace_s: float = 0.0) -> RunDir:
    """A prepared run directory for the simulated learner: three groups a step."""
    run = RunDir(base)
    run.create()
    raw = {
        "run": {"name": "sim", "steps": steps},
        "model": {"path": str(tiny_model())},
        "policy": {"launch": "scripted"},
        "learner": {"kind": "simulated", "pace_s": pace_s, "rank": 4},
        "schedule": {"groups_per_step": 3, "max_staleness": 100},
    }
    run.config.write_text(dump(validate(raw, {})))
    return run


def learner(run: RunDir) -> AbstractContextManager[subprocess.Popen]:
    """The simulated learner's process."""
    return python("-m", "engine.scripted", "learner", run.path)


def test_the_simulated_learner_trains_every_group_once_over_a_kill(tmp_path):
    """Killed in the middle, it goes on at its cursor: steps 1 to 4, each group in exactly one of them."""
    run = simulated_run(tmp_path, steps=4, pace_s=0.2)
    write_segment(run.trajectories, 0, [group(position) for position in range(14)])
    with learner(run) as process:
        wait_until(lambda: len(list(read_lines(run.learner / "steps.jsonl"))) >= 2, while_runs=process)
        process.kill()
    with learner(run) as process:
        assert process.wait() == 0
    rows = list(read_lines(run.learner / "steps.jsonl"))
    assert [row["step"] for row in rows] == [1, 2, 3, 4]
    assert [trained["id"] for row in rows for trained in row["groups"]] == [
        f"g{position:06d}" for position in range(12)
    ]
    progress = read_json(run.progress)
    assert (progress["state"], progress["version"], progress["trained_groups"]) == ("done", 4, 12)
    assert run.versions() == list(range(5))


def test_the_simulated_learner_ends_with_the_stream_and_on_sigterm(tmp_path):
    """A closed stream leaves the partial step and says done; SIGTERM ends a wait with 0."""
    run = simulated_run(tmp_path, steps=6)
    with learner(run) as waiting:
        wait_until((run.adapter(0) / "meta.json").exists, while_runs=waiting)
        waiting.terminate()
        assert waiting.wait() == 0
    write_segment(run.trajectories, 0, [group(position) for position in range(4)])
    (run.trajectories / CLOSED).write_bytes(orjson.dumps({"format": 1, "segments": 1, "frames": 4}))
    with learner(run) as process:
        assert process.wait() == 0
    progress = read_json(run.progress)
    assert (progress["state"], progress["step"], progress["waiting"], progress["frames_read"]) == ("done", 1, 1, 4)


def test_a_zero_adapter_has_the_shapes_of_its_model(tmp_path):
    """Every projection of every layer, under peft's names, all zero."""
    (tmp_path / "a.safetensors").write_bytes(zero_adapter(tiny_model(), 4, 8)["adapter_model.safetensors"])
    tensors = load_file(tmp_path / "a.safetensors")
    assert len(tensors) == 2 * 7 * 2
    assert not any(tensor.any() for tensor in tensors.values())
    name = "base_model.model.model.layers.1.self_attn.k_proj"
    assert tensors[f"{name}.lora_A.weight"].shape == (4, 16)
    assert tensors[f"{name}.lora_B.weight"].shape == (16, 4)


def test_a_script_for_other_conversations_asks_once_and_gives_up():
    """Outside its family the script still speaks in actions."""
    assert continuation("hello", Character()) == "<question>What do you need?</question>"
    assert continuation("hello <question>What do you need?</question> go on", Character()) == "<answer>Done.</answer>"
