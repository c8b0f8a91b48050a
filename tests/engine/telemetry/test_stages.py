"""engine.telemetry.stages: where the time of episodes goes, counted while they are played."""

import anyio

from engine.core.live import LiveEpisodes
from engine.errors import ToolError
from engine.scripted.constant import ConstantWorld
from engine.telemetry import METRICS
from engine.telemetry import engine_metrics as keys
from engine.telemetry.stages import Stages
from engine.types import Observation
from tests.engine.core.test_episode import DONE, ORDER
from tests.parts.live_episodes import Gated, played, seams_of


class Troubled(ConstantWorld):
    """Its first call is refused, its second one takes a while, its third one breaks."""

    def __init__(self):
        self.calls = 0

    async def open(self, task, seed):
        return self

    async def call(self, call):
        self.calls += 1
        if self.calls == 2:
            await anyio.sleep(0.02)
        if self.calls == 3:
            raise ToolError("the simulator has no answer")
        return Observation(content="{}", ok=self.calls > 1)

    async def close(self):
        return {}


async def play(live, policy, **parts):
    """One episode, that never waits for the test."""
    for turn in range(4):
        policy.go("g000001.00", turn)
    return await played("g000001.00", seams_of(policy, live, **parts))


async def test_every_stage_and_every_tool_is_counted():
    """Three calls of one tool: one that the agent sees refused, one that takes 20 ms, one that ends the episode."""
    live = LiveEpisodes()
    await play(live, Gated(ORDER, ORDER, ORDER, DONE), world=Troubled())
    row = live.stages.row()
    assert row.keys() <= METRICS.keys()
    counts = {stage: row[names.ended] for stage, names in keys.STAGES.items()}
    assert counts == {"queued": 1, "policy": 3, "tool": 3, "user": 0, "scoring": 0}
    assert 0.02 <= row[keys.STAGES["tool"].p99_s] < 10
    (tool,) = live.stages.tools(9)
    assert tool[:4] == ("place_order", 3, 1, 1)
    assert tool.p95_s == row[keys.STAGES["tool"].p99_s] > tool.p50_s


async def test_a_prompt_counts_at_every_turn():
    """What the policy is given again and again is what a cache saves."""
    live = LiveEpisodes()
    episode = await play(live, Gated(ORDER, DONE))
    prompts = sum(span.start for span in episode.tokens.spans)
    assert (live.stages.prompt_tokens, live.stages.cached_tokens) == (prompts, 0)
    assert live.stages.row()[keys.STAGES["scoring"].ended] == 1


def test_the_tools_called_last_are_kept():
    """A name that an agent makes up costs an old one its place, and no memory."""
    stages = Stages()
    for number in range(1_000):
        stages.called(f"tool_{number}", 0.1, broken=False)
        stages.called("often", 0.2, broken=number % 2 == 0)
    kept = list(stages.tools(1_000))
    assert len(kept) == 256
    assert kept[0] == ("often", 1_000, 0, 500, 0.2, 0.2)
    assert {tool.name for tool in kept[1:]} == {f"tool_{number}" for number in range(745, 1_000)}
    assert [tool.name for tool in stages.tools(1)] == ["often"]
