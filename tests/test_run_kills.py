"""SIGKILL of engine, learner and policy server in a real run: nothing is lost, nothing is trained twice."""

import os
import signal
import subprocess
import sys
import time
from contextlib import contextmanager

import psutil
import pytest

from engine.rundir import RunDir, read_json, read_lines
from engine.stream.reader import read_group_ids

STEPS = 5
SETS = (
    *("run.name=killed", f"run.steps={STEPS}", "schedule.groups_per_step=4", "schedule.group_size=4"),
    *("eval.every=0", "eval.heldout_tasks=0", "run.drain_s=10", "learner.warmup_steps=0"),
)


@contextmanager
def started(tmp_path, *arguments):
    """`synth-engine run` as a process, which writes to `out`; it does not outlive the block."""
    argv = [sys.executable, "-m", "engine.cli", "run", "--plain", *map(str, arguments)]
    with (tmp_path / "out").open("ab") as out, subprocess.Popen(argv, stdout=out, stderr=subprocess.STDOUT) as process:
        try:
            yield process
        finally:
            # A test that failed leaves nothing running: the supervisor's second signal ends everything.
            process.terminate()
            process.terminate()


def beginning(tmp_path):
    """The arguments of the run from its beginning."""
    return ["--dir", tmp_path, *(text for pair in SETS for text in ("--set", pair))]


def pid_of(run, name):
    """The pid of a child now, or None."""
    rows = (read_json(run.processes) or {"processes": []})["processes"]
    return next((row["pid"] for row in rows if row["name"] == name), None)


def step(run):
    """The learner's step."""
    return (read_json(run.progress) or {"step": 0})["step"]


def wait_for(condition, process):
    """Until the condition holds; the supervisor must not end before."""
    while not condition():
        assert process.poll() is None, "the run ended too early"
        time.sleep(0.05)


def finished(run, output):
    """Every promise of the run, from what it left on disk."""
    assert read_json(run.progress)["state"] == "done", output
    steps = list(read_lines(run.learner / "steps.jsonl"))
    assert [row["step"] for row in steps] == list(range(1, STEPS + 1))
    summary = read_json(run.summary)
    assert summary["broken_promises"] == {}
    assert (summary["episodes_lost"], summary["episodes_trained_twice"], summary["episodes_mixed_versions"]) == (
        0,
        0,
        0,
    )
    assert read_json(run.processes)["processes"] == []


@pytest.mark.slow
@pytest.mark.parametrize("name", ["engine", "learner", "server-0"])
def test_a_killed_process_costs_nothing_that_was_acknowledged(tmp_path, name):
    """Killed as soon as the engine runs, and again after steps 1 and 3: it is restarted, the run finishes."""
    run = RunDir(tmp_path / "killed")
    acknowledged = set()
    with started(tmp_path, *beginning(tmp_path)) as process:
        wait_for(lambda: pid_of(run, "engine") is not None, process)
        for after in (0, 1, 3):
            wait_for(lambda after=after: step(run) >= after and pid_of(run, name) is not None, process)
            acknowledged |= set(read_group_ids(run.trajectories))
            os.kill(pid_of(run, name), signal.SIGKILL)
            time.sleep(1.5)
        assert process.wait(280) == 0, (tmp_path / "out").read_text()
    assert acknowledged <= set(read_group_ids(run.trajectories))
    finished(run, (tmp_path / "out").read_text())


@pytest.mark.slow
def test_a_machine_that_dies_is_resumed(tmp_path):
    """Supervisor and all children killed at once, twice; --resume reaches the last step."""
    run = RunDir(tmp_path / "killed")
    acknowledged = set()
    arguments = beginning(tmp_path)
    for after in (1, 3):
        with started(tmp_path, *arguments) as process:
            wait_for(lambda after=after: step(run) >= after, process)
            acknowledged |= set(read_group_ids(run.trajectories))
            children = [psutil.Process(row["pid"]) for row in read_json(run.processes)["processes"]]
            process.kill()
            for child in children:
                child.kill()
        arguments = ["--resume", run.path]
    with started(tmp_path, *arguments) as process:
        assert process.wait(280) == 0, (tmp_path / "out").read_text()
    assert acknowledged <= set(read_group_ids(run.trajectories))
    finished(run, (tmp_path / "out").read_text())
