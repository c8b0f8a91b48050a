"""The engine process as a whole, against the scripted policy and the simulated learner (real processes)."""

import subprocess
import sys
from pathlib import Path

import pytest

from engine.rundir.layout import RunDir, read_json, read_lines


@pytest.mark.slow
def test_every_validation_happens_while_training_goes_on(tmp_path: Path) -> None:
    """Validations wait for their version beside whoever waits for the end; each is recorded, the best is linked."""
    settings = {
        "run.dir": tmp_path,
        "run.steps": 6,
        "learner.pace_s": 0.5,
        "eval.every": 2,
        "eval.validation_tasks": 4,
        "eval.heldout_tasks": 4,
        "stream.low_water_mb": 10,
    }
    words = [word for key, value in settings.items() for word in ("--set", f"{key}={value}")]
    argv = [sys.executable, "-m", "engine.cli", "run", "--config", "dry", "--plain", *words]
    done = subprocess.run(argv, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    run = RunDir(tmp_path / "dry")
    rows = list(read_lines(run.eval / "evaluations.jsonl"))
    versions = [row["version"] for row in rows if row["name"] == "validation"]
    assert versions[-1] == 6
    assert len(versions) >= 3
    assert versions == sorted(set(versions))
    assert [row["name"] for row in rows if row["name"] != "validation"] == ["heldout_before", "heldout_after"]
    assert (run.adapters / "best").is_symlink()
    phases = [entry["phase"] for entry in (read_json(run.path / "phase.json") or {})["history"]]
    assert phases == ["starting", "heldout_before", "training", "heldout_after", "done"]
