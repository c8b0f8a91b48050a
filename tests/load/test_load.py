"""Thousands of live episodes in one event loop, with every invariant asserted over what was recorded."""

from itertools import accumulate
from pathlib import Path

import pytest

from engine.config.tree import Config
from engine.rundir.layout import RunDir, read_lines
from engine.telemetry import engine_metrics as keys
from engine.types import Outcome
from tests.parts.load_runs import LIVE, assert_invariants, longest_s, many_live, mock_server, run_to_the_end

FAULTS = "error=0.01,busy=0.005,reset=0.01,garbage=0.005,abort=0.005,hang=0.0005,truncate=0.0005"


@pytest.fixture(scope="module")
def in_process(tmp_path_factory) -> tuple[RunDir, Config]:
    """A finished run against a scripted policy in the engine's own process, two seconds a turn."""
    config = many_live(tmp_path_factory.mktemp("load"), {"launch": "scripted", "script": "engine.scripted:SlowPolicy"})
    return run_to_the_end(config), config


@pytest.fixture(scope="module")
def over_http(tmp_path_factory) -> tuple[RunDir, Config]:
    """A finished run against the mock server, 50 ms a turn, with faults of every kind."""
    base: Path = tmp_path_factory.mktemp("load")
    config = many_live(base, {"launch": "none", "urls": ("http://127.0.0.1:1",)})
    with mock_server(base / "model", "--faults", FAULTS) as url:
        served = config.model_copy(update={"policy": config.policy.model_copy(update={"urls": (url,)})})
        return run_to_the_end(served), served


@pytest.mark.slow
def test_four_thousand_live_episodes_in_process_keep_every_invariant(in_process):
    """4,096 episodes trained, at least 4,000 live for ten seconds, nothing lost, mixed, doubled or misjudged."""
    run, config = in_process
    assert longest_s(run, LIVE) >= 10
    outcomes = assert_invariants(run, config)
    assert outcomes.total() >= 4_096
    assert set(outcomes) == {Outcome.AGENT_OK, Outcome.AGENT_FAIL}


@pytest.mark.slow
def test_four_thousand_live_episodes_over_http_survive_every_fault(over_http):
    """The same over sockets and under timeouts, 5xx, resets, garbage and hangs: masked episodes are rare and typed."""
    run, config = over_http
    assert longest_s(run, LIVE) >= 10
    outcomes = assert_invariants(run, config)
    assert outcomes.total() >= 4_096
    assert set(outcomes) <= {Outcome.AGENT_OK, Outcome.AGENT_FAIL, Outcome.INFRA_ERROR}
    assert 0 < outcomes[Outcome.INFRA_ERROR] < 0.02 * outcomes.total()


@pytest.mark.slow
def test_memory_stays_small_at_thousands_live(in_process):
    """The engine's resident memory at 4,800 live episodes."""
    run, _ = in_process
    assert max(row[keys.RSS] for row in read_lines(run.metrics)) <= 400_000_000


@pytest.mark.slow
def test_memory_follows_the_episodes_that_are_held(in_process):
    """At most 25 KB for each episode that was live or waited for its siblings at once, however long the run goes on.

    How many wait depends on how busy the machine is: the group budget alone bounds them, at 16,384 here."""
    run, _ = in_process
    rows = list(read_lines(run.metrics))
    empty = rows[0]
    assert empty[keys.EPISODES_LIVE] == 0
    # What was freed stays with the allocator: memory goes with the most that were held so far.
    held = accumulate((max(LIVE, row[keys.EPISODES_STARTED] - row[keys.EPISODES_FINISHED]) for row in rows), max)
    assert empty[keys.RSS] <= 200_000_000
    grown = [row[keys.RSS] - empty[keys.RSS] for row in rows]
    assert max(size / episodes for size, episodes in zip(grown, held, strict=True)) <= 25_000
