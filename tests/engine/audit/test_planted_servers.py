"""Servers that break a promise of the swap, in real runs: `audit` finds each from what was recorded, and no more."""

from pathlib import Path

import pytest

from engine.audit.check import RunRecords
from engine.audit.run import audit
from engine.config.load import validate
from tests.parts.load_runs import mock_server, run_to_the_end
from tests.parts.policy_parts import write_model


def broken(base: Path, *server: str) -> dict[str, int]:
    """What the audit finds in a run of eight swaps against such a server, with requests in flight at every moment."""
    write_model(base / "model")
    (base / "model" / "model.safetensors").write_bytes(b"")
    with mock_server(base / "model", "--latency-s", "0.5", *server) as url:
        raw = {
            "run": {"name": "planted", "dir": str(base / "runs"), "steps": 8},
            "model": {"path": str(base / "model")},
            "policy": {"launch": "none", "urls": (url,)},
            "learner": {"kind": "simulated", "pace_s": 1.0, "rank": 4},
            "schedule": {"group_size": 4, "groups_per_step": 8, "max_staleness": 4},
            "eval": {"every": 0, "heldout_tasks": 0},
            "stream": {"low_water_mb": 0.0},
        }
        run = run_to_the_end(validate(raw, {}))
    return {finding.name: finding.count for finding in audit(RunRecords.read(run)) if not finding.ok}


@pytest.mark.slow
def test_a_sound_server_breaks_nothing(tmp_path):
    """No check cries wolf over eight swaps."""
    assert broken(tmp_path) == {}


@pytest.mark.slow
def test_a_server_that_pauses_on_load_is_found(tmp_path):
    """Every request in flight stands still for three seconds whenever an adapter is loaded; otherwise they are quick.

    The learner publishes faster than that, so the next load follows each flip while new episodes are in flight."""
    found = broken(tmp_path, "--latency-s", "0.05", "--pause-on-load-s", "3.0")
    assert found.keys() == {"requests_paused_by_swap"}
    assert found["requests_paused_by_swap"] >= 3


@pytest.mark.slow
def test_a_server_that_aborts_on_load_is_found(tmp_path):
    """Every request in flight is aborted whenever an adapter is loaded; each is tried again, and none is forgotten."""
    found = broken(tmp_path, "--abort-on-load")
    assert found.keys() == {"requests_aborted_by_swap"}
    assert found["requests_aborted_by_swap"] >= 3
