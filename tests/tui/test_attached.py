"""tui.live and engine.attach: the dashboard over episodes that the engine's own parts play."""

from dataclasses import replace

import anyio
import pytest

from engine.attach.server import Attach
from engine.config.load import load
from engine.core.episode import run_episode
from engine.core.live import LiveEpisodes
from engine.core.seams import EpisodePlan
from engine.packs.pack import load_pack
from engine.preflight.manifest import create
from engine.run.compose import build_parts
from engine.types import Completion
from tests.parts.looking import aside, look_until, looking, may_listen
from tests.parts.played_runs import SETTINGS, packed
from tui.snapshot import SnapshotQuery


@pytest.fixture(autouse=True)
def _listening(blockbuster):
    may_listen(blockbuster)


class Slowly:
    """A policy that takes its time, and then answers."""

    def __init__(self, chat):
        self._chat, self.go = chat, anyio.Event()

    async def complete(self, turn):
        if turn.index:
            await self.go.wait()
        said = "<answer>No.</answer>" if turn.index else "<question>Which fruit?</question>"
        ids = [*self._chat.encode(said), self._chat.stop_token_ids[0]]
        return Completion(
            text=said, ids=ids, logprobs=[-0.25] * len(ids), adapter=turn.adapter, server="here", stop="stop"
        )


def prepared(base):
    """A run directory for a scripted policy, its configuration and its first task."""
    chosen = {**SETTINGS, "run.dir": base, "tasks.pack": packed(base / "shops.jsonl")}
    run = create(load("dry", [f"{key}={value}" for key, value in chosen.items()]).config)
    return run, load(run.config).config, load_pack(run.pack).tasks[0]


async def test_an_engine_that_plays(tmp_path):
    """Episodes that the engine's own parts play are seen in flight through its own socket, to their ends."""
    run, config, task = await aside(prepared, tmp_path)
    async with build_parts(run, config, anyio.current_time, lambda _: None) as parts:
        live = LiveEpisodes()
        policy = Slowly(parts.seams.chat)
        seams = replace(parts.seams, live=live, policy=policy)
        async with anyio.create_task_group() as tg:
            tg.start_soon(Attach(run, live, anyio.current_time).serve)

            async def play(number):
                plan = EpisodePlan(
                    id=f"g000007.{number:02d}",
                    group_id="g000007",
                    task=task,
                    seed=number,
                    version=3,
                    adapter="a-v00003",
                    limits=config.limits.value(),
                    sampling=config.sampling,
                    queued_s=anyio.current_time(),
                )
                ended.append(await run_episode(plan, seams, lambda _: False))

            ended = []
            for number in range(3):
                tg.start_soon(play, number)
            question = SnapshotQuery(follow="g000007.01", siblings=True)
            async with looking(run) as source:
                seen = await look_until(source, lambda seen: seen.phases.get("policy") == 3, question)
                waits = await look_until(source, lambda seen: seen.episode and len(seen.episode.spans) == 1, question)
                assert waits.episode.row.phase == "policy"
                assert [message["role"] for message in waits.episode.messages][-2:] == ["assistant", "user"]
                assert seen.total == 3
                assert len(waits.siblings) == 3
                assert waits.episode.instruction == task.instruction
                policy.go.set()
                seen = await look_until(source, lambda seen: seen.phases.get("done") == 3, question)
                shown, record = seen.episode, next(one for one in ended if one.id == "g000007.01")
                assert shown.messages == record.messages
                assert shown.events == record.events
                assert shown.timings == record.timings
                assert list(shown.ids) == record.tokens.ids.tolist()
                assert list(shown.logprobs) == record.tokens.logprobs.tolist()
                assert shown.spans == record.tokens.spans
                assert (shown.reward, shown.stop, shown.row.outcome) == (record.reward, record.stop, record.outcome)
                assert await source.cancel("g000007.01") == f"g000007.01 has ended already, as {record.outcome}"
            tg.cancel_scope.cancel()
