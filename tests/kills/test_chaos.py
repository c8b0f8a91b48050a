"""Whole runs while whoever plays users, tools and judges misbehaves: they complete, every fault is accounted for.

The engine, the learner and the endpoint are processes; faults are injected by the endpoint and by `world.faults`.
"""

from collections import Counter
from pathlib import Path

import pytest
from click.testing import CliRunner

from engine.cli import cli
from engine.rundir.layout import RunDir, read_lines
from engine.types import Outcome
from engine.world.faults import GARBAGE, UNAVAILABLE
from tests.parts.chaos_runs import (
    assert_accounts,
    assert_outcomes,
    chaos_engine,
    chaos_pack,
    chaos_run,
    episodes_of,
    scripted_endpoint,
)

FAULTS = "hang=0.10,error=0.05,malformed=0.05"
SIMULATOR_FAULTS = (Outcome.USER_FAULT, Outcome.TOOL_FAULT, Outcome.JUDGE_FAULT)


@pytest.mark.parametrize(
    "native", [{}, {"endpoints.sim.api": "sglang", "endpoints.sim.batch": 2}], ids=["openai", "sglang"]
)
def test_a_run_completes_on_an_endpoint_that_fails_and_accounts_for_every_fault(native: dict, tmp_path: Path) -> None:
    """Without second attempts one call in seven is lost: those episodes are masked, and every promise is kept."""
    settings = {
        "run.steps": 2,
        "schedule.groups_per_step": 3,
        "eval.heldout_tasks": 0,
        "learner.pace_s": 0.1,
        **native,
        "endpoints.sim.retries": 0,
        "world.faults": "'*: flaky=0.2, garbage=0.05, error=0.05'",
    }
    pack, ledger = chaos_pack(tmp_path / "pack.jsonl", 8, 0), tmp_path / "ledger.jsonl"
    with scripted_endpoint(ledger, "--faults", FAULTS) as url:
        run = chaos_engine(tmp_path, pack, url, **settings)
    outcomes = assert_outcomes(run)
    assert outcomes[Outcome.AGENT_OK] > 0
    assert sum(outcomes[outcome] for outcome in SIMULATOR_FAULTS) > 0
    assert assert_accounts(run, ledger, native.get("endpoints.sim.batch", 1))["failed"] > 0
    _assert_injected(run)


def _assert_injected(run: RunDir) -> None:
    """faults.jsonl holds what episodes met at the tool boundary, and what those met that became no frame."""
    lines: dict[tuple[str, int], Counter[str]] = {}
    for row in read_lines(run.faults):
        lines.setdefault((row["task"], row["seed"]), Counter())[row["fault"]] += 1
    training, _ = episodes_of(run)
    assert sum((counts for counts in lines.values()), Counter()).keys() == {"flaky", "garbage", "error"}
    for episode in training:
        mine = lines.get((episode.task_id, episode.seed), Counter())
        texts = Counter(event.text for event in episode.events)
        assert texts[UNAVAILABLE.content] == mine["flaky"]
        assert texts[GARBAGE] <= mine["garbage"]
        assert ("injected fault" in episode.error) == bool(mine["error"])
        assert not mine["error"] or not episode.scored


@pytest.mark.slow
def test_a_run_survives_a_minute_without_its_simulators(tmp_path: Path) -> None:
    """Nobody restarts anything: calls wait until the endpoint is back, and the same episodes come out again."""
    settings = {
        "run.steps": 40,
        "schedule.groups_per_step": 4,
        "eval.heldout_tasks": 8,
        "learner.pace_s": 0.5,
        "limits.turn_s": 120,
    }
    pack, ledger = chaos_pack(tmp_path / "pack.jsonl", 64, 8), tmp_path / "ledger.jsonl"
    with scripted_endpoint(ledger, "--faults", FAULTS, "--down", "12:60") as url:
        run, told = chaos_run(tmp_path, pack, url, **settings)
    assert "starting it again" not in told
    assert "training episodes by outcome: " in told
    assert "calls per episode" in told
    outcomes, client = assert_outcomes(run), assert_accounts(run, ledger)
    # A minute of backoff has some eight attempts of a call in it, and several calls were on their way.
    assert client["faults"]["busy"] > 20
    assert sum(outcomes[outcome] for outcome in SIMULATOR_FAULTS) <= 0.01 * outcomes.total()
    for command in ("audit", "verify"):
        done = CliRunner().invoke(cli, [command, str(run.path)])
        assert done.exit_code == 0, done.output
