"""The main job against the real, unmodified SGLang on the CPU: started, fed with adapters, and audited."""

import subprocess
import sys

import pytest

from engine.rundir.layout import RunDir, read_json, read_lines
from engine.stream.reader import iter_groups
from tests.parts.places import ROOT
from tests.parts.sglang_environment import needs_sglang

SETTINGS = {
    "run.steps": 3,
    "eval.every": 0,
    "eval.heldout_tasks": 24,
    "policy.launch": "sglang",
    "policy.device": "cpu",
    "stream.low_water_mb": 0,
}


def program(*arguments):
    """What the command prints, once it has done its work."""
    argv = [sys.executable, "-m", "engine.cli", *arguments]
    done = subprocess.run(argv, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-4000:]
    return done.stdout


@pytest.mark.slow
@needs_sglang
def test_three_steps_against_sglang(tmp_path):
    """Adapters are swapped under load; nothing is aborted, paused or mixed; the learner agrees with the server."""
    settings = {**SETTINGS, "run.dir": tmp_path}
    sets = [word for key, value in settings.items() for word in ("--set", f"{key}={value}")]
    program("run", "--config", "tiny", "--plain", *sets)
    run = RunDir(tmp_path / "tiny")
    summary = read_json(run.summary)
    assert summary["steps"] == summary["swaps"] == 3
    zeros = ("episodes_mixed_versions", "episodes_lost", "episodes_trained_twice")
    assert [summary[key] for key in (*zeros, "requests_aborted_by_swap", "requests_paused_by_swap")] == [0] * 5
    assert summary["broken_promises"] == {}
    assert summary["heldout_after"]["episodes"] == 24
    rows = list(read_lines(run.learner / "metrics.jsonl"))
    # Log-probabilities of base (version 0) and adapters, learner against server, in nats.
    assert max(row["learner/mismatch_abs_max_nats"] for row in rows) < 1e-4
    # The last step's tokens come from an adapter, if an early one: had the base sampled them, both would be alike.
    assert rows[-1]["learner/base_k3_nats"] > 1e3 * rows[-1]["learner/mismatch_k3_nats"]
    # SGLang is started again for a fork, with the adapter that played the episode.
    [whole, *_] = [one for group in iter_groups(run.trajectories) for one in group.episodes if one.version == 2]
    said = program("fork", str(run.path), f"{whole.id}@{whole.turns - 1}", "-n", "2")
    assert [f"{whole.id}+{whole.turns - 1:02d}.{branch:02d}" in said for branch in range(3)] == [True, True, False]
