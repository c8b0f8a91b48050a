"""Runs of the real engine process at scale, and the invariants of docs/architecture.md over what they recorded."""

import subprocess
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import anyio
import orjson

from engine.chat.chat_format import ChatFormat
from engine.config.load import validate
from engine.config.tree import Config
from engine.core.seams import ScoringRecord
from engine.packs.pack import load_pack
from engine.preflight.manifest import create
from engine.reward.rubric import RubricScorer
from engine.rundir.layout import RunDir, adapter_name, read_json, read_lines, write_json
from engine.schema.canonical import compact, with_defaults
from engine.stream.reader import iter_groups, read_group_ids
from engine.stream.segment import CLOSED
from engine.task import Task
from engine.telemetry import engine_metrics as keys
from engine.types import Episode, EpisodeGroup, EventKind, Outcome
from tests.parts.children import python
from tests.parts.policy_parts import write_model
from tests.parts.waiting import LONG_S, wait_until

LIVE = 4_000
GROUP = 16


def many_live(base: Path, policy: dict[str, Any]) -> Config:
    """1,024 groups of 16 may be outstanding, 4,800 episodes live, 16 steps of 16 groups: 4,096 episodes trained."""
    write_model(base / "model")
    (base / "model" / "model.safetensors").write_bytes(b"")
    raw = {
        "run": {"name": "load", "dir": str(base / "runs"), "steps": 16},
        "model": {"path": str(base / "model")},
        "policy": policy,
        "learner": {"kind": "simulated", "pace_s": 1.0, "rank": 4},
        "schedule": {"group_size": GROUP, "groups_per_step": 16, "max_staleness": 63, "live_slots": 4_800},
        "eval": {"every": 0, "heldout_tasks": 0},
        "limits": {"turn_s": 60.0, "wall_s": 300.0},
        "stream": {"low_water_mb": 0.0},
    }
    return validate(raw, {})


@contextmanager
def mock_process(model: Path, *arguments: str) -> Iterator[tuple[str, subprocess.Popen[bytes]]]:
    """The mock policy server's process, and its URL."""
    command = ("engine.scripted", "server", "--model", str(model), *arguments)
    with python("-m", *command, stdout=subprocess.PIPE) as child:
        yield orjson.loads(child.stdout.readline())["url"], child


@contextmanager
def mock_server(model: Path, *arguments: str) -> Iterator[str]:
    """The URL of a mock policy server's process."""
    with mock_process(model, *arguments) as (url, _):
        yield url


def run_to_the_end(config: Config) -> RunDir:
    """Simulated learner and engine as processes, until the engine has ended by itself."""
    run = create(config)
    write_json(run.path / "servers.json", {"urls": list(config.policy.urls)})
    with python("-m", "engine.scripted", "learner", run.path) as learner:
        wait_until((run.adapter(0) / "meta.json").exists, LONG_S, while_runs=learner)
        with python("-m", "engine.run", run.path) as engine:
            assert engine.wait() == 0
        assert learner.wait(LONG_S) == 0
    return run


def longest_s(run: RunDir, live: int) -> float:
    """The longest time over which every recorded gauge said that at least so many episodes were live."""
    longest, since = 0.0, None
    for row in read_lines(run.metrics):
        if row[keys.EPISODES_LIVE] < live:
            since = None
            continue
        since = row[keys.RUN_S] if since is None else since
        longest = max(longest, row[keys.RUN_S] - since)
    return longest


def assert_invariants(run: RunDir, config: Config) -> Counter[str]:
    """Every invariant that files can show; returns how often each outcome came up."""
    groups = list(iter_groups(run.trajectories))
    _emit_once(run, config, groups)
    chat = ChatFormat.load(Path(config.model.path))
    tasks = {task.id: task for task in load_pack(run.pack).tasks}
    answers: dict[str, str] = {}
    episodes = [(episode, tasks[group.task_id]) for group in groups for episode in group.episodes]
    for episode, task in episodes:
        _pinned_version(episode, run.run_id)
        _token_in_token_out(episode, task, chat)
        _stable_world(episode, task, answers)
    anyio.run(_trusted_rewards, episodes)
    return Counter(episode.outcome for episode, _ in episodes)


def _emit_once(run: RunDir, config: Config, groups: list[EpisodeGroup]) -> None:
    """Each group once, whole, and trained at most once; the budget was kept at every moment that was recorded."""
    ids = read_group_ids(run.trajectories)
    assert len(ids) == len(set(ids)) == len(groups)
    closed = read_json(run.trajectories / CLOSED)
    assert closed is not None
    assert closed["frames"] == len(ids)
    for episode_group in groups:
        assert episode_group.id == f"g{episode_group.position:06d}"
        assert [episode.id for episode in episode_group.episodes] == [
            f"{episode_group.id}.{index:02d}" for index in range(GROUP)
        ]
    trained = [group["id"] for row in read_lines(run.learner / "steps.jsonl") for group in row["groups"]]
    assert len(trained) == len(set(trained)) == config.run.steps * config.schedule.groups_per_step
    assert set(trained) <= set(ids)
    for row in read_lines(run.metrics):
        outstanding = row[keys.GROUPS_ADMITTED] - row[keys.GROUPS_TRAINED] - row[keys.GROUPS_DROPPED]
        assert outstanding <= config.group_budget


def _pinned_version(episode: Episode, run_id: str) -> None:
    assert episode.adapter == adapter_name(run_id, episode.version)
    assert episode.tokens is not None
    assert {span.version for span in episode.tokens.spans} <= {episode.version}


def _token_in_token_out(episode: Episode, task: Task, chat: ChatFormat) -> None:
    """The ledger is the prompt, then completion and observation in turn; completions decode to what was said."""
    tokens, at = episode.tokens, 0
    assert tokens is not None
    prompt = chat.prompt(task)[1] if tokens.spans else []
    said = [message["content"] for message in episode.messages if message["role"] == "assistant"]
    assert tokens.ids[: len(prompt)].tolist() == list(prompt)
    assert len(tokens.logprobs) == sum(span.length for span in tokens.spans)
    for span, text in zip(tokens.spans, said, strict=True):
        assert span.start == len(prompt) if at == 0 else span.start > at
        at = span.start + span.length
        assert chat.decode(tokens.ids[span.start : at].tolist()) == text


def _stable_world(episode: Episode, task: Task, answers: dict[str, str]) -> None:
    """The same call in the same world state got the same answer, in every episode of the task."""
    writes: list[str] = []
    for event in episode.events:
        tool = task.tool(event.tool)
        if event.kind is not EventKind.CALLED or tool is None:
            continue
        call = f"{event.tool} {compact(with_defaults(tool.parameters, event.arguments))}"
        key = "\n".join([task.id, *writes, call])
        assert answers.setdefault(key, event.text) == event.text, key
        if event.ok and tool.writes:
            writes.append(call)


async def _trusted_rewards(episodes: list[tuple[Episode, Task]]) -> None:
    """Only scored outcomes have a reward; it is what the rubric says of the recorded events."""
    for episode, task in episodes:
        assert episode.scored == episode.outcome.scored
        if not episode.scored:
            assert episode.error
            continue
        assert await RubricScorer().score(ScoringRecord.of(task, episode)) == episode.reward
        assert (episode.outcome is Outcome.AGENT_OK) == (episode.reward.value >= 1)
