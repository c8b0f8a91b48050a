"""Metrics elsewhere while a run works: real processes, a real port, a real event file."""

import importlib.util
import os
import signal
import socket
import subprocess
import time

import psutil
import pytest
from click.testing import CliRunner

from engine.cli import cli
from engine.config.load import load
from engine.errors import ConfigError
from engine.preflight.manifest import create
from engine.rundir.layout import RunDir, read_json, read_lines
from engine.supervise import supervisor as supervise
from engine.supervise.supervisor import DRAINING, Supervisor, SupervisorPhase, metrics_command
from engine.telemetry import engine_metrics as keys
from tests.engine.supervise.test_supervisor import run, supervisor, told
from tests.engine.telemetry.test_elsewhere import needs, scraped, tensorboard_values
from tests.parts.declared_metrics import unfilled
from tests.parts.recorded_runs import small_pack

__all__ = ["run"]

STEPS = 4
SMALL = {
    "eval.every": 0,
    "eval.heldout_tasks": 0,
    "learner.pace_s": 0.4,
    "schedule.group_size": 2,
    "schedule.groups_per_step": 2,
}


@pytest.fixture
def port():
    """One that nobody listens on."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        return taken.getsockname()[1]


def made(tmp_path, *, steps=STEPS, **metrics):
    """A run of a few steps that is not begun, and its configuration."""
    sets = {
        **SMALL,
        "run.steps": steps,
        "run.dir": tmp_path / "runs",
        "tasks.pack": small_pack(tmp_path / "small.jsonl"),
        **{f"metrics.{key}": value for key, value in metrics.items()},
    }
    run = create(load("dry", [f"{key}={value}" for key, value in sets.items()]).config)
    return run, load(run.config).config


def metrics_pid(run):
    """Of the process that takes them elsewhere, as recorded."""
    return next((row["pid"] for row in read_json(run.processes)["processes"] if row["name"] == "metrics"), None)


def supervised(run, config, on_tick):
    """Exit code and notes of the run, when it has ended."""
    notes = []

    def tick(status):
        notes.extend(status.notes)
        if status.phase is SupervisorPhase.RUNNING:
            on_tick()

    return Supervisor(run, config, tick).run().code, notes


def trained(url):
    """Groups, as a scrape tells; None if nobody answers."""
    try:
        values, _ = scraped(url)
    except OSError:
        return None
    return values.get("synth_engine_groups_trained_total", 0)


@needs("tensorboard")
def test_a_run_is_scraped_and_written_while_it_works(tmp_path, port):
    """Prometheus text that grows, an event file with the last step, and nothing left at the end."""
    run, config = made(tmp_path, steps=500, port=port, writers='["tensorboard"]')
    told, pids = [], []

    def look():
        pids.append(metrics_pid(run))
        if (found := trained(f"http://127.0.0.1:{port}/metrics")) is not None:
            told.append(found)
        if len(set(told)) > 1:
            os.kill(os.getpid(), signal.SIGTERM)

    assert supervised(run, config, look) == (128 + signal.SIGTERM, [DRAINING])
    assert told == sorted(told)
    assert not psutil.pid_exists(pids[-1])
    assert trained(f"http://127.0.0.1:{port}/metrics") is None
    values = [value for tag, _, value, _ in tensorboard_values(run.path / "tensorboard") if tag == keys.GROUPS_TRAINED]
    assert values[-1] == list(read_lines(run.metrics))[-1][keys.GROUPS_TRAINED] >= told[-1] > 0
    assert unfilled(read_lines(run.metrics)) == set()


@pytest.mark.slow
def test_metrics_that_are_killed_are_served_again(tmp_path, port):
    """On the same port, with the same totals or later ones."""
    run, config = made(tmp_path, steps=500, port=port)
    told, killed = [], []

    def look():
        if (found := trained(f"http://127.0.0.1:{port}/metrics")) is not None:
            told.append((metrics_pid(run), found))
            if not killed and found:
                killed.append(told[-1][0])
                os.kill(killed[0], signal.SIGKILL)
        if len({pid for pid, _ in told}) > 1:
            os.kill(os.getpid(), signal.SIGTERM)

    code, notes = supervised(run, config, look)
    assert code == 128 + signal.SIGTERM
    assert "metrics ended (killed by SIGKILL); starting it again in 1 s" in notes
    assert [values for _, values in told] == sorted(values for _, values in told)
    assert not psutil.pid_exists(told[-1][0])


@pytest.mark.slow
def test_a_port_in_use_costs_the_run_nothing(tmp_path):
    """One note: which port, and what else there is."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        run, config = made(tmp_path, port=port)
        code, [note] = supervised(run, config, lambda: None)
    assert code == 0
    assert f"port {port} of 127.0.0.1: Address already in use; choose another one" in note
    assert "The run goes on; `synth-engine metrics serve`" in note


def test_a_port_in_use_is_a_matter_of_configuration(tmp_path):
    """The process says so and ends: with these arguments it would never do."""
    run = RunDir(tmp_path / "run")
    run.create()
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        command = metrics_command(run, load("dry", [f"metrics.port={port}"]).config)
        done = subprocess.run(command.argv, capture_output=True, text=True, env=command.environment, check=False)
    assert done.returncode == 2
    assert done.stderr.startswith(f"port {port} of 127.0.0.1: Address already in use")


def test_what_is_started_follows_from_the_configuration(tmp_path):
    """Nothing, a port, writers, or both."""
    run = RunDir(tmp_path)

    def arguments(*sets):
        command = metrics_command(run, load("dry", sets).config)
        return command and command.argv[command.argv.index(str(os.getpid())) + 1 :]

    assert arguments() is None
    assert arguments("metrics.port=9100") == ("--port", "9100")
    assert arguments('metrics.writers=["wandb","trackio"]', "metrics.port=1") == (
        *("--port", "1"),
        *("--to", "wandb", "--to", "trackio"),
    )


def invoke(*arguments):
    """`synth-engine run ...`, refused."""
    with pytest.raises(ConfigError) as refused:
        CliRunner().invoke(cli, ["run", *map(str, arguments)], catch_exceptions=False)
    return str(refused.value)


@pytest.fixture
def without_trackio(monkeypatch):
    """As if it were not installed, which it is not."""
    find = importlib.util.find_spec
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None if name == "trackio" else find(name))


@pytest.mark.usefixtures("without_trackio")
def test_a_writer_that_is_not_installed_is_refused_before_anything_is_made(tmp_path):
    """With the extra that has it; and a run that exists keeps its configuration."""
    writers = ("--set", 'metrics.writers=["tensorboard","trackio"]')
    said = invoke("--config", "dry", "--dir", tmp_path / "runs", *writers)
    assert 'pip install "synth-engine[trackio]"' in said
    assert not (tmp_path / "runs").exists()
    run, _ = made(tmp_path)
    before = run.config.read_text()
    assert invoke("--resume", run.path, *writers) == said
    assert run.config.read_text() == before


@pytest.mark.parametrize("port", ["70000", "-1"])
def test_a_port_that_is_none_is_refused_before_anything_is_made(tmp_path, port):
    """By the name of its key."""
    assert "metrics.port" in invoke("--config", "dry", "--dir", tmp_path / "runs", "--metrics-port", port)
    assert not (tmp_path / "runs").exists()


# --- what becomes of the run, with small scripts in place of the rest ------------------------------------------------

METRICS = 'on_stop("metrics")\ntell("start metrics")\nforever()'
UNTIL_METRICS = """
on_stop("engine")
tell("start engine")
while "start metrics" not in (run / "told").read_text():
    time.sleep(0.02)
put(run / "phase.json", phase="done")
"""
"""An engine that plays until the metrics listen to signals."""


def test_metrics_end_last(monkeypatch, run):
    """What the others write at their end is still taken along; nothing is left of it."""
    found = supervisor(monkeypatch, run, metrics=METRICS, engine=UNTIL_METRICS)
    assert found.run().code == 0
    assert told(run)[-2:] == ["stop server", "stop metrics"]
    assert read_json(run.processes)["processes"] == []


UNTIL_TOLD = """
on_stop("engine")
tell("start engine")
while not (run / "enough").exists():
    time.sleep(0.02)
put(run / "phase.json", phase="done")
"""
"""An engine that plays until the test has seen what it waits for."""


def test_metrics_that_die_are_started_again(monkeypatch, run):
    """Once a second later, while the run goes on."""
    once = (
        'tell("start metrics")\nif not (run / "died").exists():\n    (run / "died").touch()\n    os.abort()\nforever()'
    )
    notes = []

    def look(status):
        notes.extend(status.notes)
        if status.phase is SupervisorPhase.RUNNING and told(run).count("start metrics") == 2:
            (run.path / "enough").touch()

    assert supervisor(monkeypatch, run, metrics=once, engine=UNTIL_TOLD, on_tick=look).run().code == 0
    assert told(run).count("start metrics") == 2
    assert notes == ["metrics ended (killed by SIGABRT); starting it again in 1 s"]


@pytest.mark.parametrize(
    ("script", "begins", "starts"),
    [
        ('sys.stderr.write("port 9 is taken")\nsys.exit(2)', "the metrics do not go elsewhere\n", 1),
        ('sys.stderr.write("unreachable")\nsys.exit(1)', "metrics ended (exit code 1) twice with the same words.", 2),
    ],
)
def test_metrics_that_cannot_go_elsewhere_do_not_end_the_run(monkeypatch, run, script, begins, starts):
    """One last note, with its words and what else there is; a configuration that is refused is not tried again."""
    notes, given_up_s = [], []

    def look(status):
        notes.extend(status.notes)
        if len(notes) >= starts:
            given_up_s.append(time.monotonic())
            # Longer than it waits before it starts something again: it would be seen.
            if given_up_s[-1] > given_up_s[0] + 1.5:
                (run.path / "enough").touch()

    metrics = f'tell("start metrics")\n{script}'
    assert supervisor(monkeypatch, run, metrics=metrics, engine=UNTIL_TOLD, on_tick=look).run().code == 0
    assert told(run).count("start metrics") == starts
    assert len(notes) == starts
    assert notes[-1].startswith(begins)
    assert script.split('"')[1] in notes[-1]
    assert "The run goes on; `synth-engine metrics serve`" in notes[-1]


def test_metrics_have_their_own_time_to_end(monkeypatch, run):
    """More than others: a network may be slow; but not for ever."""
    monkeypatch.setattr(supervise, "_GRACE_S", 0.05)
    slow = """
    def stop(*_):
        time.sleep(float((run / "takes").read_text()))
        tell("stop metrics")
        sys.exit(0)
    signal.signal(signal.SIGTERM, stop)
    tell("start metrics")
    forever()
    """
    # Others would be killed after 0.65 s; what ends has all the time that a busy machine takes.
    for takes_s, may_take_s, ends in ((0.7, 60.0, True), (60.0, 0.5, False)):
        monkeypatch.setattr(supervise, "_UPLOAD_S", may_take_s)
        (run.path / "takes").write_text(str(takes_s))
        (run.path / "phase.json").unlink(missing_ok=True)
        (run.path / "told").unlink(missing_ok=True)
        notes = []
        found = supervisor(
            monkeypatch,
            run,
            metrics=slow,
            engine=UNTIL_METRICS,
            on_tick=lambda status, notes=notes: notes.extend(status.notes),
            sets=["run.drain_s=0.5"],
        )
        assert found.run().code == 0
        assert ("stop metrics" in told(run)) is ends
        assert any(note.startswith("metrics did not end within 1 s") for note in notes) is not ends
