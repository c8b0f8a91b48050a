"""SIGKILL of any process, at several points, with everything real: nothing acknowledged is lost, nothing trained twice.

The main job at small size: the shipped model behind the embedded server, the GRPO learner, real swaps. After each kill
the supervisor restarts what died (or `--resume` starts all of it), and the audit recomputes every invariant.
"""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from engine.rundir import RunDir, read_json
from engine.stream.reader import written_positions

STEPS = 6
SETTINGS = {
    "run.steps": STEPS,
    "schedule.group_size": 4,
    "schedule.groups_per_step": 3,
    "eval.every": 3,
    "eval.validation_tasks": 8,
    "eval.heldout_tasks": 8,
    "stream.low_water_mb": 10,
    "run.name": "kills",
}
PATIENCE_S = 200.0

pytestmark = pytest.mark.slow


def synth(*arguments: str) -> list[str]:
    """The command line of the product."""
    return [sys.executable, "-m", "engine.cli", *arguments]


def start(directory: Path, *more: str) -> subprocess.Popen[bytes]:
    """Start the main job, or go on with it."""
    with (directory / "output.txt").open("ab") as output:
        return subprocess.Popen(synth("run", "--plain", *more), stdout=output, stderr=subprocess.STDOUT)


def begin(directory: Path) -> tuple[subprocess.Popen[bytes], RunDir]:
    """A new run in `directory`."""
    settings = [word for key, value in SETTINGS.items() for word in ("--set", f"{key}={value}")]
    process = start(directory, "--config", "tiny", "--set", f"run.dir={directory}", *settings)
    return process, RunDir(directory / "kills")


def until(condition: Callable[[], bool], process: subprocess.Popen[bytes], what: str) -> None:
    """Wait for a condition while the run is alive."""
    deadline = time.monotonic() + PATIENCE_S
    while not condition():
        assert process.poll() is None, f"the run ended before {what}"
        assert time.monotonic() < deadline, f"waited in vain for {what}"
        time.sleep(0.02)


def step(run: RunDir) -> int:
    """The learner's last completed step."""
    return int((read_json(run.progress) or {"step": -1})["step"])


def groups(run: RunDir) -> int:
    """Acknowledged groups."""
    return len(set(written_positions(run.trajectories)))


def child(run: RunDir, name: str) -> psutil.Process | None:
    """The process of that name, as the supervisor recorded it."""
    rows = (read_json(run.processes) or {"processes": []})["processes"]
    return next((psutil.Process(row["pid"]) for row in rows if row["name"] == name), None)


def finished(directory: Path, process: subprocess.Popen[bytes], run: RunDir) -> None:
    """The run ended well, reached its last step, and the audit finds nothing."""
    code = process.wait(PATIENCE_S)
    output = (directory / "output.txt").read_text()
    assert code == 0, output[-3000:]
    assert step(run) == STEPS
    audit = subprocess.run(synth("audit", str(run.path)), capture_output=True, text=True, check=False)
    assert audit.returncode == 0, audit.stdout + audit.stderr
    summary = read_json(run.summary)
    assert summary is not None
    zeros = ("episodes_lost", "episodes_mixed_versions", "episodes_trained_twice", "requests_aborted_by_swap")
    assert {name: summary[name] for name in zeros} == dict.fromkeys(zeros, 0)
    assert summary["steps"] == STEPS


MOMENTS: dict[str, Callable[[RunDir], bool]] = {
    "before the first step": lambda run: groups(run) >= 1,
    "right after a checkpoint": lambda run: any(run.learner.glob("checkpoint-00002*")),
    "in the middle": lambda run: step(run) >= 3,
}


@pytest.mark.parametrize("moment", MOMENTS)
@pytest.mark.parametrize("name", ["engine", "learner", "server-0"])
def test_a_killed_child_is_restarted_and_the_run_finishes(tmp_path: Path, name: str, moment: str) -> None:
    """The supervisor brings it back; no acknowledged group is lost by it."""
    process, run = begin(tmp_path)
    until(lambda: MOMENTS[moment](run), process, moment)
    acknowledged = set(written_positions(run.trajectories))
    victim = child(run, name)
    assert victim is not None
    victim.kill()
    finished(tmp_path, process, run)
    assert acknowledged <= set(written_positions(run.trajectories))
    assert f"{name} ended" in (tmp_path / "output.txt").read_text()


@pytest.mark.parametrize("moment", MOMENTS)
def test_everything_killed_at_once_is_resumed(tmp_path: Path, moment: str) -> None:
    """Power cut: supervisor and all children die together; `--resume` goes on to the last step."""
    process, run = begin(tmp_path)
    until(lambda: MOMENTS[moment](run), process, moment)
    children = psutil.Process(process.pid).children(recursive=True)
    for victim in (psutil.Process(process.pid), *children):
        victim.kill()
    process.wait()
    acknowledged = set(written_positions(run.trajectories))
    finished(tmp_path, start(tmp_path, "--resume", str(run.path)), run)
    assert acknowledged <= set(written_positions(run.trajectories))


def test_when_the_supervisor_dies_its_children_drain_and_leave(tmp_path: Path) -> None:
    """No orphan stays, and the run resumes."""
    process, run = begin(tmp_path)
    until(lambda: step(run) >= 1, process, "the first step")
    children = psutil.Process(process.pid).children(recursive=True)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    _, alive = psutil.wait_procs(children, timeout=60)
    assert alive == []
    finished(tmp_path, start(tmp_path, "--resume", str(run.path)), run)


def test_sigterm_drains_and_resume_finishes(tmp_path: Path) -> None:
    """A pre-empting cluster: SIGTERM, everything finished is kept, the next start goes on."""
    process, run = begin(tmp_path)
    until(lambda: step(run) >= 2, process, "the second step")
    process.send_signal(signal.SIGTERM)
    assert process.wait(90) == 128 + signal.SIGTERM
    before = step(run)
    finished(tmp_path, start(tmp_path, "--resume", str(run.path)), run)
    assert before <= STEPS
