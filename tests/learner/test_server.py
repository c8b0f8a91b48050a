"""The learner against the real embedded server: the whole path for twenty steps, with hot swaps."""

import os
import subprocess
import sys

import pytest

from engine.rundir.layout import RunDir, read_json, read_lines
from tests.parts.places import ROOT

SETTINGS = (
    "run.steps=20",
    "schedule.group_size=4",
    "schedule.groups_per_step=3",
    "eval.every=0",
    "eval.heldout_tasks=0",
    "stream.low_water_mb=0",
)


@pytest.mark.slow
def test_twenty_steps_with_the_embedded_server_agree_to_1e8(tmp_path):
    """Probe k3 below 1e-8 at every step while versions are swapped in, and the adapter comes to matter (9)."""
    settings = [word for setting in (*SETTINGS, f"run.dir={tmp_path}") for word in ("--set", setting)]
    argv = [sys.executable, "-m", "engine.cli", "run", "--config", "tiny", "--plain", *settings]
    done = subprocess.run(argv, cwd=ROOT, env=os.environ, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    run = RunDir(tmp_path / "tiny")
    rows = list(read_lines(run.learner / "metrics.jsonl"))
    assert len(rows) == 20
    probed = [row for row in rows if "learner/mismatch_k3_nats" in row]
    assert len(probed) >= 18
    assert max(row["learner/mismatch_k3_nats"] for row in probed) < 1e-8
    assert max(row["learner/base_k3_nats"] for row in probed) > 1e-3
    summary = read_json(run.summary)
    assert summary["swaps"] >= 19
    assert summary["staleness"].keys() - {"0"}
