"""Small runs that a scripted policy played, by the engine's own parts, alone or with the scripted language model."""

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import anyio
import orjson

from engine.chat.chat_format import ChatFormat
from engine.config.load import load
from engine.config.tree import Config
from engine.core.episode import run_episode
from engine.core.seams import EpisodePlan
from engine.evals.split import Suite, evaluate
from engine.packs.pack import load_pack
from engine.preflight.manifest import create
from engine.run.compose import build_parts
from engine.rundir.layout import RunDir
from engine.scripted.endpoint import ScriptedEndpoint
from engine.scripted.policy import made_up_logprobs
from engine.task import Task
from engine.types import Completion, EpisodeGroup, Source, Turn
from tests.parts.llm_parts import listening
from tests.parts.recorded_runs import GROUP_SIZE, group, write_stream
from tests.parts.worlds import TEXT, outputs, task_json, tool

EPISODES = 3 * GROUP_SIZE + 1
SETTINGS = {
    "run.name": "recorded",
    "policy.script": "tests.parts.played_runs:Script",
    "limits.tokens": 8000,
    "limits.completion_tokens": 400,
    "limits.turns": 5,
    "eval.every": 0,
}
LLM = {
    "world.kind": "llm",
    "world.endpoint": "sim",
    "user.kind": "llm",
    "user.endpoint": "sim",
    "user.profile": "mixed",
    "scorer.judge": "sim",
    "endpoints.sim.url": "http://127.0.0.1:1",
    "endpoints.sim.model": "scripted",
}


def called(name: str, **arguments: Any) -> str:
    """A call as the policy writes it."""
    return f"<tool_call>{orjson.dumps({'name': name, 'arguments': arguments}).decode()}</tool_call>"


LINES = (
    # The arguments are not canonical: 5.0 is 5, and white space around a text is none of it.
    (
        "<question>What quantity of which fruit?</question>",
        called("place_order", item=" apple ", quantity=5.0),
        called("find_shop", street="High Street") + called("list_orders"),
        "<answer>The code is 47.</answer>",
    ),
    (
        "<question>When?</question>",
        called("find_shop", street="High Street"),
        called("rush_order", item="apple"),
        "<answer>Rushed.</answer>",
    ),
    ("I will look.", "<tool_call>nothing", called("find_shop", street="high  street!"), "<answer>No.</answer>"),
    (called("shop_hours", day="Monday"),),
)


class Script:
    """A policy that plays LINES by the episode's place in its group, the last line for ever."""

    def __init__(self, chat: ChatFormat, seed: int) -> None:
        self._chat = chat

    async def complete(self, turn: Turn) -> Completion:
        lines = LINES[int(turn.episode_id.rpartition(".")[2])]
        ids = self._chat.encode(lines[min(turn.index, len(lines) - 1)])
        ids.append(self._chat.stop_token_ids[0])
        text = self._chat.decode(ids)
        return Completion(
            text=text, ids=ids, logprobs=made_up_logprobs(ids), adapter=turn.adapter, server="here", stop="stop"
        )


def packed(path: Path, **changes: Any) -> Path:
    """A pack of three training tasks and a held-out one."""
    tools = [*task_json()["tools"], tool("find_shop", {"street": TEXT}, outputs=outputs(street=TEXT, name=TEXT))]
    tasks = [
        task_json(id=f"shop-{number}", tools=tools, split="heldout" if number == 3 else "train", **changes)
        for number in range(4)
    ]
    path.write_bytes(b"\n".join(map(orjson.dumps, [{"format": 1, "pack": "shops"}, *tasks])))
    return path


def recorded(base: Path, pack: Path, **settings: Any) -> RunDir:
    """A run of the scripted policy, recorded by the engine's own parts and written by its own writer."""
    chosen = {**SETTINGS, "run.dir": base, "tasks.pack": pack, **settings}
    run = create(load("dry", [f"{key}={value}" for key, value in chosen.items()]).config)
    groups, evaluations = anyio.run(_record, run, list(load_pack(run.pack).tasks), load(run.config).config)
    write_stream(run, run.trajectories, groups)
    write_stream(run, run.eval, evaluations)
    return run


async def _record(run: RunDir, tasks: Sequence[Task], config: Config) -> tuple[list[EpisodeGroup], list[EpisodeGroup]]:
    groups: list[EpisodeGroup] = []
    evaluations: list[EpisodeGroup] = []
    async with listening(ScriptedEndpoint().application()) as url:
        if config.endpoints:
            there = {name: at.model_copy(update={"url": url}) for name, at in config.endpoints.items()}
            config = config.model_copy(update={"endpoints": there})
        async with build_parts(run, config, time.monotonic, lambda _: None) as parts:
            for position, task in enumerate(tasks[:3]):
                episodes = []
                for index in range(GROUP_SIZE):
                    plan = EpisodePlan(
                        id=f"g{position:06d}.{index:02d}",
                        group_id=f"g{position:06d}",
                        task=task,
                        seed=100 * position + index,
                        version=position,
                        adapter=f"a-v{position:05d}",
                        limits=config.limits.value(),
                        sampling=config.sampling,
                        queued_s=0.0,
                    )
                    episodes.append(await run_episode(plan, parts.seams, lambda _: False))
                groups.append(group(f"g{position:06d}", position, Source.POLICY, episodes))
            suite = Suite.of(config, "heldout_before", [(3, tasks[3])])

            async def emit(group: EpisodeGroup) -> EpisodeGroup:
                evaluations.append(group)
                return group

            await evaluate(suite, parts.seams, 0, "a-v00000", emit, lambda _: None)
            await parts.flush()
    return groups, evaluations


def offline_run(base: Path) -> RunDir:
    """A run without language models."""
    return recorded(base, packed(base / "shops.jsonl"))


def asked_run(base: Path) -> RunDir:
    """A run whose tools, users and judge were played by a language model, which is gone."""
    rubric = task_json()["rubric"]
    del rubric["subgoals"][1]["check"]
    return recorded(base, packed(base / "shops.jsonl", rubric=rubric), **LLM)
