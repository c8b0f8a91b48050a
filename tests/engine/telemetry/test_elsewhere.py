"""engine.telemetry.{writers,prometheus,serve}: what other tools get, by their real packages where installed."""

import importlib.util
import os
import signal
import socket
import struct
import subprocess
import sys
import urllib.error
import urllib.request

import psutil
import pytest
from click.testing import CliRunner

from engine.commands.metrics import command
from engine.errors import ConfigError
from engine.telemetry.follow import Sample
from engine.telemetry.prometheus import Exposition
from engine.telemetry.writers import WRITERS, open_writer
from tests.engine.telemetry.test_follow import add, engine_row, lines, run
from tests.parts.children import child
from tests.parts.places import ROOT
from tests.parts.waiting import wait_until

__all__ = ["run"]
LEARNER_ROW = {"learner/step_count": 1, "learner/loss_mean": -0.25, "learner/staleness_2_tokens": 40}


def needs(package):
    """Skips where an extra is not installed; the development environment has TensorBoard's alone."""
    absent = importlib.util.find_spec(package) is None
    return pytest.mark.skipif(absent, reason=f"{package} is not installed")


def scraped(url):
    """What Prometheus gets: {name and labels: value}, and the lines about names."""
    with urllib.request.urlopen(url, timeout=5) as answer:
        assert answer.headers["Content-Type"].startswith("text/plain; version=0.0.4")
        text = answer.read().decode()
    told = [line for line in text.splitlines() if line.startswith("#")]
    samples = (line.rsplit(" ", 1) for line in text.splitlines() if not line.startswith("#"))
    return {name: float(value) for name, value in samples}, told


def tensorboard_values(directory):
    """(tag, step, value, wall time) of every scalar in the one event file there."""
    event_pb2 = pytest.importorskip("tensorboard.compat.proto.event_pb2")
    [path] = directory.glob("events.out.tfevents.*")
    data, place, found = path.read_bytes(), 0, []
    while place < len(data):
        [length] = struct.unpack_from("<Q", data, place)
        event = event_pb2.Event.FromString(data[place + 12 : place + 12 + length])
        found += [(value.tag, event.step, value.simple_value, event.wall_time) for value in event.summary.value]
        place += 16 + length
    return found


def invoke(*arguments):
    """`synth-engine metrics ...`."""
    return CliRunner().invoke(command, [str(argument) for argument in arguments], catch_exceptions=False)


@pytest.fixture
def written(run):
    """Two rows of the engine and one of the learner."""
    add(run.metrics, lines(engine_row(0.5, turns_finished_count=3), engine_row(1.75, turns_finished_count=8)))
    add(run.learner / "metrics.jsonl", lines(LEARNER_ROW))
    return run


@needs("tensorboard")
def test_an_export_to_tensorboard_is_the_run_and_a_second_one_replaces_it(written):
    """Engine over whole seconds, learner over steps; one event file, however often."""
    for _ in range(2):
        assert invoke("export", written.path, "--to", "tensorboard").output.startswith("3 rows of met-01234567")
    values = tensorboard_values(written.path / "tensorboard")
    assert [(step, value) for tag, step, value, _ in values if tag == "turns/finished_count"] == [(0, 3), (1, 8)]
    assert [(step, value) for tag, step, value, _ in values if tag == "learner/loss_mean"] == [(1, -0.25)]
    [first, second] = [wall_s for tag, _, _, wall_s in values if tag == "time/run_s"]
    assert second - first == pytest.approx(1.25)


@needs("tensorboard")
def test_an_export_leaves_other_event_files_alone(written, tmp_path):
    """`--out` may be a directory that others write to."""
    other = tmp_path / "board" / "events.out.tfevents.1.other"
    other.parent.mkdir()
    other.write_bytes(b"")
    invoke("export", written.path, "--to", "tensorboard", "--out", other.parent)
    assert other.exists()
    assert len(list(other.parent.iterdir())) == 2


@needs("wandb")
def test_an_export_to_wandb_is_a_run_of_the_same_id(written):
    """Offline, in a process of its own: the package starts servants."""
    argv = [sys.executable, "-c", "from engine.commands.metrics import command; command()"]
    argv += ["export", str(written.path), "--to", "wandb"]
    subprocess.run(argv, env={**os.environ, "WANDB_MODE": "offline"}, check=True, capture_output=True, timeout=60)
    [path] = written.path.glob("wandb/offline-run-*/run-met-01234567.wandb")
    content = path.read_bytes()
    assert all(key.encode() in content for key in (*LEARNER_ROW, "turns/finished_count"))
    assert list(path.parent.glob("files/*")) == []


@needs("trackio")
def test_an_export_to_trackio_is_one_run_however_often(written, tmp_path):
    """Read back with trackio itself."""
    look = "import trackio; [run] = trackio.Api().runs('synth-engine'); print('run', run.name)"
    export = f"from engine.commands.metrics import command; command({['export', str(written.path), '--to', 'trackio']})"
    for script in (export, export, look):
        environment = {**os.environ, "TRACKIO_DIR": str(tmp_path / "trackio")}
        argv = [sys.executable, "-c", script]
        done = subprocess.run(argv, env=environment, check=True, capture_output=True, text=True, timeout=60)
    assert done.stdout.splitlines()[-1] == "run met-01234567"


@pytest.mark.parametrize("name", WRITERS)
def test_an_absent_package_names_the_extra(name, written, monkeypatch):
    """What to install, before anything is written."""
    monkeypatch.setattr(importlib.util, "find_spec", lambda package: None)
    with pytest.raises(ConfigError, match=rf'{name} needs the package \w+: pip install "synth-engine\[{name}\]"'):
        open_writer(name, written)


def test_an_unknown_writer_is_told_the_known_ones(written):
    """It may come from a configuration."""
    with pytest.raises(ConfigError, match=r"no metrics writer 'mlflow'; there are tensorboard, wandb, trackio"):
        open_writer("mlflow", written)


def test_prometheus_gets_the_newest_row_of_each_file():
    """With help and type, a label for what changes in a key, and nothing of rows before."""
    served = Exposition(0)
    try:
        assert scraped(served.url) == ({}, [])
        for row in ({**LEARNER_ROW, "learner/base_k3_nats": 1.5}, LEARNER_ROW):
            served.write(Sample(values=row, axis="learner/step_count", step=1, wall_s=0.0))
        served.write(Sample(values=engine_row(2.5, turns_finished_count=8), axis="time/run_s", step=2, wall_s=0.0))
        values, told = scraped(served.url)
    finally:
        served.close()
    assert values == {
        "synth_engine_learner_step_total": 1,
        "synth_engine_learner_loss_mean": -0.25,
        'synth_engine_learner_staleness_tokens{versions="2"}': 40,
        "synth_engine_time_run_s": 2.5,
        "synth_engine_turns_finished_total": 8,
    }
    assert "# HELP synth_engine_time_run_s The run's clock, continued over resumes (s)" in told
    assert "# TYPE synth_engine_turns_finished_total counter" in told
    assert "# TYPE synth_engine_learner_loss_mean gauge" in told


def test_one_family_stands_together_whatever_stands_between():
    """Names are told once; what a label holds cannot end it; a key that nobody declared is left out."""
    keys = ('endpoint.a"b/requests_count', "tool/asked_count", "endpoint.c/requests_count", "unknown/key_count")
    served = Exposition(0)
    try:
        served.write(Sample(values=dict.fromkeys(keys, 1), axis="time/run_s", step=1, wall_s=0.0))
        values, told = scraped(served.url)
    finally:
        served.close()
    assert list(values) == [
        'synth_engine_endpoint_requests_total{endpoint="a\\"b"}',
        'synth_engine_endpoint_requests_total{endpoint="c"}',
        "synth_engine_tool_asked_total",
    ]
    assert told.count("# TYPE synth_engine_endpoint_requests_total counter") == 1


def test_only_who_asks_for_a_port_loads_prometheus():
    """Neither the command line, nor an export, nor a run's own process."""
    script = (
        "import sys, engine.cli, engine.commands.metrics, engine.telemetry.serve, engine.run; "
        "print('prometheus_client' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"


def test_only_this_machine_can_ask():
    """No address but 127.0.0.1 answers, and a port in use is refused in a sentence."""
    served = Exposition(0)
    port = int(served.url.rsplit(":", 1)[1].partition("/")[0])
    every = (address for addresses in psutil.net_if_addrs().values() for address in addresses)
    others = [address.address for address in every if address.family == socket.AF_INET]
    others = [address for address in others if address != "127.0.0.1"] + ["127.0.0.2"] * (sys.platform == "linux")
    try:
        for address in others:
            with pytest.raises(ConnectionRefusedError):
                socket.create_connection((address, port), timeout=5)
        with pytest.raises(ConfigError, match=rf"port {port} of 127\.0\.0\.1: .+; choose another one, or 0"):
            Exposition(port)
    finally:
        served.close()


def beside(run, *options, parent):
    """The process that a run starts."""
    argv = [sys.executable, "-m", "engine.telemetry.serve", *options, str(run.path), "--parent-pid", str(parent)]
    return child(*argv, stdout=subprocess.PIPE, text=True, cwd=ROOT)


@needs("tensorboard")
def test_the_process_beside_a_run_follows_and_writes_what_is_left(written):
    """Rows that come later are answered; one from just before the stop is written too."""
    with beside(written, "--port", "0", "--to", "tensorboard", parent=os.getpid()) as process:
        url = process.stdout.readline().split()[-1]
        add(written.metrics, lines(engine_row(9, turns_finished_count=10)))
        wait_until(lambda: scraped(url)[0].get("synth_engine_time_run_s") == 9, while_runs=process)
        values, _ = scraped(url)
        assert values["synth_engine_turns_finished_total"] == 10
        add(written.metrics, lines(engine_row(10, turns_finished_count=11)))
        process.send_signal(signal.SIGTERM)
        assert process.wait(15) == 0
    values = tensorboard_values(written.path / "tensorboard")
    assert [value for tag, _, value, _ in values if tag == "turns/finished_count"] == [3, 8, 10, 11]


@needs("tensorboard")
def test_the_process_beside_a_run_ends_without_its_parent(written):
    """With everything written."""
    with beside(written, "--to", "tensorboard", parent=1) as process:
        assert process.wait(15) == 0
    assert len(tensorboard_values(written.path / "tensorboard")) == 7
