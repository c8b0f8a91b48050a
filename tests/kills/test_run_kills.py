"""SIGKILL of engine, learner and policy server in a real run: nothing is lost, nothing is trained twice."""

import os
import signal
import subprocess
import sys
import time
from contextlib import contextmanager

import psutil
import pytest

from engine.rundir.layout import RunDir, read_json, read_lines
from engine.stream.reader import iter_groups, read_group_ids
from engine.types import StopReason
from tests.parts.sglang_environment import needs_sglang
from tests.parts.waiting import LONG_S, wait_until

STEPS = 5
SETS = (
    *("run.name=killed", f"run.steps={STEPS}", "schedule.groups_per_step=4", "schedule.group_size=4"),
    *("eval.every=0", "eval.heldout_tasks=0", "run.drain_s=10", "learner.warmup_steps=0"),
)

CPU = {"embedded": (), "sglang": ("policy.device=cpu",)}


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


def beginning(tmp_path, *sets):
    """The arguments of the run from its beginning."""
    return ["--dir", tmp_path, *(text for pair in (*SETS, *sets) for text in ("--set", pair))]


def pid_of(run, name):
    """The pid of a child now, or None."""
    rows = (read_json(run.processes) or {"processes": []})["processes"]
    return next((row["pid"] for row in rows if row["name"] == name), None)


def step(run):
    """The learner's step."""
    return (read_json(run.progress) or {"step": 0})["step"]


def wait_for(condition, process):
    """Until the condition holds; the supervisor must not end before."""
    wait_until(condition, LONG_S, while_runs=process)


def finished(run, output, last=STEPS):
    """Every promise of the run, from what it left on disk."""
    assert read_json(run.progress)["state"] == "done", output
    steps = list(read_lines(run.learner / "steps.jsonl"))
    assert [row["step"] for row in steps] == list(range(1, last + 1))
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


@pytest.mark.slow
@pytest.mark.parametrize("lost_by", [signal.SIGKILL, signal.SIGSTOP])
@pytest.mark.parametrize("launch", ["embedded", pytest.param("sglang", marks=needs_sglang)])
def test_one_of_two_servers_is_lost_and_comes_back(tmp_path, launch, lost_by):
    """Episodes go on at the other; it is restarted, or goes on, and has the adapters before it has requests again."""
    run = RunDir(tmp_path / "killed")
    sets = (f"policy.launch={launch}", "policy.servers=2", "run.steps=5000", *CPU[launch])
    with started(tmp_path, *beginning(tmp_path, *sets)) as process:
        wait_for(lambda: step(run) >= 1, process)
        lost, other = read_json(run.path / "servers.json")["urls"]
        pid = pid_of(run, "server-0")
        os.kill(pid, lost_by)
        before = step(run)
        wait_for(lambda: step(run) >= before + 2, process)
        if lost_by is signal.SIGSTOP:
            os.kill(pid, signal.SIGCONT)
        wait_for(lambda: away_rows(run, lost), process)
        back = step(run)
        wait_for(lambda: step(run) >= back + 5, process)
        process.terminate()
        assert process.wait(120) == 128 + signal.SIGTERM, (tmp_path / "out").read_text()
    audit = subprocess.run(
        [sys.executable, "-m", "engine.cli", "audit", run.path], capture_output=True, text=True, check=False
    )
    assert audit.returncode == 0, audit.stdout
    swaps = list(read_lines(run.swaps))
    [away] = away_rows(run, lost)
    assert away["ok"]
    assert away["event"] == ("restart" if lost_by is signal.SIGKILL else "down")
    assert {row["server"] for row in swaps if row["event"] == "moved"} <= {lost}
    _flips_went_on(swaps, away)
    _held_before_traffic(run, swaps, away)
    assert {episode.server for group in iter_groups(run.trajectories) for episode in group.episodes} == {lost, other}


def away_rows(run, server):
    """The times in which a server had no traffic."""
    return [row for row in read_lines(run.swaps) if row["server"] == server and row["event"] in ("restart", "down")]


def _flips_went_on(swaps, away):
    """New versions became current while the server was away."""
    assert any(away["start_s"] < row["start_s"] < away["end_s"] for row in swaps if row["event"] == "flip")


def _held_before_traffic(run, swaps, away):
    """It got adapters while it was away, the current one among them, and served episodes after that."""
    loads = [row for row in swaps if row["event"] == "load" and row["server"] == away["server"] and row["ok"]]
    pushed = {row["version"] for row in loads if away["start_s"] < row["end_s"] <= away["end_s"]}
    current = max(row["version"] for row in swaps if row["event"] == "flip" and row["end_s"] <= away["end_s"])
    assert current in pushed
    served = [
        episode
        for group in iter_groups(run.trajectories)
        for episode in group.episodes
        if episode.server == away["server"] and episode.timings[0].start_s > away["end_s"]
    ]
    # On a busy machine a version may fall too far behind; that is no fault of the server's.
    assert {episode.error for episode in served if episode.stop is not StopReason.STALE} == {""}
