"""engine.run.costs: what is counted of language models becomes declared rows of metrics.jsonl."""

import anyio
import orjson
import pytest

from engine.llm.question import ModelQuestion
from engine.run.costs import account
from engine.run.models import SimulatorModels
from engine.scripted.endpoint import ScriptedEndpoint as Scripted
from engine.telemetry import MetricsFile
from engine.telemetry import simulator_metrics as keys
from engine.telemetry.metrics import meant
from engine.world.mapping import MappingCounts
from tests.parts.declared_metrics import SIMULATORS, unfilled
from tests.parts.llm_parts import asking

pytestmark = pytest.mark.anyio
COUNTS = MappingCounts(exact=5, seeded=0, equivalent=1, simulated=2)


def question(number):
    """A question to the user, who knows nothing."""
    document = {"as": "user", "facts": [], "agent": f"{number}?"}
    return ModelQuestion(
        role="user",
        task="t",
        owner="t",
        about=("user", number),
        instructions="Answer.",
        document=document,
        schema={"type": "object"},
    )


async def test_a_run_without_endpoints_has_none_of_it():
    """Its rows are what they are without."""
    assert account(SimulatorModels(), COUNTS) == {}


async def test_rows_have_what_endpoints_and_parts_counted(tmp_path):
    """Each key is declared; parts that are not played have none, and neither has money without prices."""
    async with asking(tmp_path, Scripted(), output_price=2.0) as asker:
        models = SimulatorModels(askers={"sim": asker}, endpoints={"sim": asker._reachable.endpoint})
        for number in (1, 2, 1):
            await asker.ask(question(number), lambda reply, _: reply)
        asker._reachable.endpoint.account.faults["busy"] += 3
        asker.tallies["user"].refused["leak"] += 1
        row = account(models, COUNTS)
    assert row["endpoint.sim/requests_count"] == row["endpoint.sim/calls_count"] == 2
    assert row["endpoint.sim/fault_busy_count"] == 3
    assert row["user/asked_count"] == 3
    assert (row["user/recorded_count"], row["user/replies_count"], row["user/refused_leak_count"]) == (1, 2, 1)
    assert row["user/completion_tokens_count"] > 0
    assert row["user/cost_money"] == pytest.approx(2e-6 * row["user/completion_tokens_count"])
    assert row["mapping/exact_count"] == 5
    assert not any(key.startswith(("tool/", "judge/")) for key in row)
    assert all(meant(key) for key in row)
    await anyio.to_thread.run_sync(written, tmp_path / "metrics.jsonl", row)
    async with asking(tmp_path, Scripted(), api="sglang") as asker:
        models = SimulatorModels(askers={"sim": asker}, endpoints={"sim": asker._reachable.endpoint})
        assert not any("cost" in key for key in account(models, None))


async def test_every_declared_key_is_filled_by_a_run_that_plays_all_parts(tmp_path):
    """With every fault, a refusal of each part, and prices."""
    async with asking(tmp_path, Scripted(), output_price=2.0) as asker:
        models = SimulatorModels(askers={"sim": asker}, endpoints={"sim": asker._reachable.endpoint})
        await asker.ask(question(1), lambda reply, _: reply)
        asker._reachable.endpoint.account.faults.update(dict.fromkeys(keys.FAULT_COUNTS, 1))
        for tally in asker.tallies.values():
            tally.asked += 1
            tally.refused["leak"] += 1
        assert unfilled([account(models, COUNTS)], SIMULATORS) == set()


def written(path, row):
    """The row can be written, and is what was read."""
    with MetricsFile(path) as metrics:
        metrics.append(row)
    assert orjson.loads(path.read_bytes()) == row
