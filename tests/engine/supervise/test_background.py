"""engine.supervise.background: a run that needs no terminal, and what becomes of it when the one in front goes."""

import os
import signal
import subprocess
import sys

import psutil
import pytest
from click.testing import CliRunner

from engine.cli import cli
from engine.commands import run as run_command
from engine.config.load import load
from engine.preflight.manifest import create
from engine.rundir.layout import RunDir, read_json
from engine.supervise import background
from engine.supervise.background import Background, on_terminal, supervisor_of
from engine.supervise.supervisor import Ending
from tests.parts.recorded_runs import small_pack
from tests.parts.terminals import StandIn, Terminal, end, gone, live, stopped
from tests.parts.waiting import wait_until

DRY = ("run", "--config", "dry", "--set", "tasks.pack=small.jsonl")
LONG = (*DRY, "--set", "run.steps=5000", "--set", "eval.heldout_tasks=0", "--set", "eval.every=0")


@pytest.fixture
def stand_in(tmp_path):
    """A dashboard that ends as it is told, beside the tasks of a run."""
    small_pack(tmp_path / "small.jsonl")
    return StandIn(tmp_path)


@pytest.fixture
def run(tmp_path):
    """Where `run --config dry` puts its files; nothing of it outlives the test."""
    run = RunDir(tmp_path / "runs" / "dry")
    yield run
    end(run)


@pytest.fixture
def fresh(tmp_path):
    """A run that was made, and not begun."""
    pack = small_pack(tmp_path / "fresh.jsonl")
    return create(load("dry", [f"run.dir={tmp_path / 'runs'}", f"tasks.pack={pack}"]).config)


def looked_at(stand_in, run, front):
    """Until the dashboard is in front and the engine runs; the supervisor."""
    front.until(lambda: stand_in.shown() is not None)
    front.until(lambda: "engine" in [row["name"] for row in read_json(run.processes)["processes"]])
    return supervisor_of(run)


def goes_on(run):
    """Whether the run takes another step."""
    before = _step(run)
    wait_until(lambda: _step(run) > before, 60)
    return supervisor_of(run) is not None


def _step(run):
    return (read_json(run.progress) or {"step": 0})["step"]


def synth_engine(stand_in, *arguments):
    """A command without a terminal, finished."""
    argv = [sys.executable, "-m", "engine.cli", *map(str, arguments)]
    return subprocess.run(
        argv, cwd=stand_in.place, env=stand_in.environment, capture_output=True, text=True, check=False
    )


def test_a_run_that_is_left_goes_on_and_is_stopped_without_a_viewer(stand_in, run):
    """Exit code 0 and two lines: how to look again, how to stop; the stop drains, and is told."""
    with Terminal(stand_in, *LONG) as front:
        supervisor = looked_at(stand_in, run, front)
        assert os.getsid(supervisor.pid) == supervisor.pid
        stand_in.choose(10)
        assert front.ended() == 0, front.text
    assert stand_in.shown() == [str(run.path), "--owner"]
    assert f"look at it again with:  synth-engine attach {run.path}\n" in front.text
    assert f"Stop it with:  synth-engine runs stop {run.path}\n" in front.text
    assert goes_on(run)
    done = synth_engine(stand_in, "runs", "stop")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "! draining: what is finished is being saved" in done.stdout
    assert "stopped; what was finished is saved; go on with:  synth-engine run --resume runs/dry\n" in done.stdout
    assert stopped(run, supervisor.pid)
    assert "step" in (run.path / "supervisor.log").read_text()
    assert synth_engine(stand_in, "runs", "stop", "dry").stdout == f"{run.path} is not running\n"


@pytest.mark.slow
def test_a_stop_that_was_chosen_drains(stand_in, run):
    """It is waited for and ends as without a dashboard: the same words, and SIGTERM's exit code."""
    with Terminal(stand_in, *LONG) as front:
        supervisor = looked_at(stand_in, run, front)
        stand_in.choose(11)
        assert front.ended() == 143, front.text
    assert "! draining: what is finished is being saved (Ctrl-C again stops at once)" in front.text
    assert "stopped; what was finished is saved" in front.text
    assert f"go on with:  synth-engine run --resume {run.path}" in front.text
    assert stopped(run, supervisor.pid)


@pytest.mark.slow
def test_ctrl_c_while_it_drains_stops_at_once(stand_in, run):
    """An engine that hangs costs no patience."""
    with Terminal(stand_in, *LONG) as front:
        looked_at(stand_in, run, front)
        [engine] = [row["pid"] for row in read_json(run.processes)["processes"] if row["name"] == "engine"]
        os.kill(engine, signal.SIGSTOP)
        stand_in.choose(11)
        front.until(lambda: "! draining" in front.text)
        front.press(b"\x03")
        assert front.ended() == 130, front.text
    assert "stopped at once" in front.text
    assert read_json(run.processes)["processes"] == []


@pytest.mark.slow
def test_sigterm_to_the_command_stops_the_run(stand_in, run):
    """As it does without a dashboard, which goes first."""
    with Terminal(stand_in, *LONG) as front:
        supervisor = looked_at(stand_in, run, front)
        front.process.terminate()
        assert front.ended() == 143, front.text
    assert "stopped; what was finished is saved" in front.text
    assert stopped(run, supervisor.pid)


@pytest.mark.slow
def test_a_run_that_ended_is_concluded(stand_in, run):
    """Leaving the dashboard then shows what came out, as without one."""
    short = ("--set", "run.steps=2", "--set", "learner.pace_s=0.2", "--set", "eval.heldout_tasks=8")
    with Terminal(stand_in, *LONG, *short) as front:
        front.until(lambda: stand_in.shown() is not None)
        front.until(lambda: read_json(run.processes)["ending"] is not None)
        stand_in.choose(0)
        assert front.ended() == 0, front.text
    assert "Held-out reward" in front.text
    assert "Everything lies in" in front.text
    assert (run.path / "report.html").exists()


@pytest.mark.slow
@pytest.mark.parametrize(("end", "how"), [("crash", "exit code 1"), ("killed", "killed by SIGKILL")])
def test_a_dashboard_that_breaks_costs_nothing(tmp_path, run, end, how):
    """What it said is seen, the terminal is usable, and the run goes on as if it had been left."""
    (tmp_path / "raw").mkdir()
    small_pack(tmp_path / "raw" / "small.jsonl")
    stand_in = StandIn(tmp_path / "raw")
    with Terminal(stand_in, *LONG, "--dir", run.path.parent) as front:
        looked_at(stand_in, run, front)
        front.until(lambda: not front.echoes())
        stand_in.choose(end)
        assert front.ended() == 0, front.text
        assert front.echoes()
    assert ("RuntimeError: the picture broke" in front.text) == (end == "crash")
    assert ("\x1b[?1049l" in front.text) == (end == "killed")
    assert f"! the dashboard ended ({how}); what it said stands above; the run goes on" in front.text
    assert f"synth-engine attach {run.path}" in front.text
    assert goes_on(run)


@pytest.mark.slow
@pytest.mark.parametrize("way", ["kill", "hang-up"])
def test_the_run_survives_what_is_in_front_of_it(stand_in, run, way):
    """The command killed, or its terminal closed: the dashboard goes with it, the supervisor does not."""
    with Terminal(stand_in, *LONG) as front:
        looked_at(stand_in, run, front)
        [shown] = [
            child
            for child in psutil.Process(front.process.pid).children()
            if "--owner" in child.cmdline() and child.pid != supervisor_of(run).pid
        ]
        if way == "kill":
            front.process.kill()
        else:
            front.hang_up()
        assert front.ended() == (-signal.SIGKILL if way == "kill" else -signal.SIGHUP)
        gone(shown, 60)
    assert goes_on(run)


@pytest.mark.slow
def test_ctrl_c_before_the_dashboard_is_a_stop(stand_in, run):
    """130, nothing is left, and no dashboard was shown."""
    with Terminal(stand_in, *LONG) as front:
        front.until(lambda: "starting: waiting for the supervisor" in front.text)
        front.press(b"\x03")
        assert front.ended() == 130, front.text
    assert "stopped" in front.text
    assert stand_in.shown() is None
    assert not run.processes.exists() or read_json(run.processes)["processes"] == []


def test_what_cannot_begin_is_told_without_a_dashboard(monkeypatch, fresh):
    """The supervisor's own sentence and exit code, from its log."""
    monkeypatch.setattr(background, "dashboard", None)
    fresh.config.write_text("[run]\nstep = 3\n")
    ending = Background(fresh, lambda _: None).run()
    assert ending.code == 2
    assert ending.message.endswith("there is no key 'run.step'; did you mean 'run.steps'?")
    assert "error" not in ending.message


def test_a_supervisor_that_was_killed_is_told(monkeypatch, fresh):
    """With the signal, as a shell tells it, and its log."""
    monkeypatch.setattr(background, "dashboard", None)
    watched = Background(fresh, lambda _: watched.supervisor.signal(signal.SIGKILL))
    ending = watched.run()
    assert ending.code == 137
    assert ending.message.startswith("the supervisor ended (killed by SIGKILL)\nThe end of ")


def test_a_supervisor_is_its_pid_and_its_start(fresh):
    """One that ended, or whose pid went to another process, is none."""
    assert supervisor_of(fresh) is None
    with live(fresh) as process:
        assert supervisor_of(fresh).pid == process.pid
        process.kill()
        # Nobody has waited for it yet.
        os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
        assert psutil.pid_exists(process.pid)
        assert supervisor_of(fresh) is None
    assert supervisor_of(fresh) is None
    with live(fresh, started=-5.0):
        assert supervisor_of(fresh) is None


class Stream:
    """A standard stream."""

    def __init__(self, *, terminal):
        self.isatty = lambda: terminal


@pytest.mark.parametrize("without", ["stdin", "stdout", "stderr", "TERM", "nothing"])
def test_a_dashboard_needs_a_whole_terminal(monkeypatch, without):
    """All three streams, and a terminal that can draw."""
    for name in ("stdin", "stdout", "stderr"):
        monkeypatch.setattr(sys, name, Stream(terminal=name != without))
    monkeypatch.setenv("TERM", "dumb" if without == "TERM" else "xterm")
    assert on_terminal() == (without == "nothing")


@pytest.mark.parametrize(("has_terminal", "plain"), [(False, False), (True, True)])
def test_without_a_terminal_or_with_plain_nothing_changes(monkeypatch, tmp_path, has_terminal, plain):
    """The command itself supervises."""

    class Nobody:
        def __init__(self, run, config, on_tick):
            pass

        def run(self):
            return Ending(code=1, message="nobody is here")

    monkeypatch.setattr(run_command, "on_terminal", lambda: has_terminal)
    monkeypatch.setattr(run_command, "Supervisor", Nobody)
    monkeypatch.setattr(run_command, "Background", None)
    monkeypatch.chdir(tmp_path)
    small_pack(tmp_path / "small.jsonl")
    arguments = [*DRY, "--dir", str(tmp_path), *(["--plain"] if plain else [])]
    result = CliRunner().invoke(cli, arguments)
    assert result.exit_code == 1, result.output
    assert "to stop    Ctrl-C once drains and saves" in result.output
    assert "nobody is here" in result.output
