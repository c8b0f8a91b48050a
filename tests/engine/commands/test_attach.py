"""`attach`, `replay` and `runs stop`: what the dashboard is started with, and what follows from how it ended."""

import shutil
import signal
import subprocess
import sys

import pytest
from click.testing import CliRunner
from matplotlib.image import imread

from engine.cli import cli
from engine.commands.replay import seconds
from engine.config.load import load
from engine.errors import ConfigError, RunError
from engine.preflight.manifest import create
from engine.rundir.layout import RunDir
from tests.parts.recorded_runs import small_pack
from tests.parts.terminals import StandIn, Terminal, live

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)


@pytest.fixture
def stand_in(tmp_path):
    """A dashboard that ends as it is told."""
    return StandIn(tmp_path)


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """Two run directories; the second is the latest."""
    base = tmp_path_factory.mktemp("made") / "runs"
    pack = small_pack(base.parent / "small.jsonl")
    for name in ("one", "two"):
        create(load("dry", [f"run.dir={base}", f"run.name={name}", f"tasks.pack={pack}"]).config)
    return base


@pytest.fixture
def runs(made, tmp_path):
    """Copies of them, which nobody works on."""
    shutil.copytree(made, tmp_path / "runs", symlinks=True)
    return [RunDir(tmp_path / "runs" / name) for name in ("one", "two")]


def invoke(*arguments):
    """A command without a terminal; raises what it raises."""
    result = CliRunner().invoke(cli, [str(argument) for argument in arguments], catch_exceptions=False)
    return result.exit_code, result.output


def shown(stand_in, *arguments, choice=0):
    """A command on a terminal whose dashboard ends with `choice`: its arguments, the exit code, the text."""
    stand_in.choose(choice)
    with Terminal(stand_in, *arguments) as front:
        code = front.ended()
    return stand_in.shown(), code, front.text


def test_the_latest_run_is_looked_at(stand_in, runs):
    """Or the one that is named; the answer of a viewer who left changes nothing."""
    with live(runs[1]) as process:
        assert shown(stand_in, "attach")[:2] == ([str(runs[1].path)], 0)
        assert shown(stand_in, "attach", "one", "--readonly")[:2] == ([str(runs[0].path), "--readonly"], 0)
        assert process.poll() is None


def test_where_several_are_live_the_dashboard_asks(stand_in, runs):
    """And where that is wished."""
    with live(runs[0]), live(runs[1]):
        assert shown(stand_in, "attach")[0][:3] == ["--runs", "runs", "--chosen"]
        assert shown(stand_in, "attach", "two")[0] == [str(runs[1].path)]
    picked = shown(stand_in, "attach", "--pick", "--readonly")[0]
    assert (picked[:3], picked[4:]) == (["--runs", "runs", "--chosen"], ["--readonly"])


def test_a_viewer_stops_the_run(stand_in, runs):
    """SIGTERM to its supervisor, and how to wait for it."""
    with live(runs[1]) as process:
        _, code, text = shown(stand_in, "attach", choice=11)
        assert (code, process.wait(5)) == (0, -signal.SIGTERM)
    assert f"{runs[1].path} drains: what is finished is being saved" in text
    assert f"synth-engine runs stop {runs[1].path}\n" in text


def test_another_process_with_its_pid_is_left_alone(stand_in, runs):
    """The start time tells them apart."""
    with live(runs[1], started=-5.0) as process:
        assert "it is not running any more" in shown(stand_in, "attach", choice=11)[2]
        assert process.poll() is None


def test_a_stop_among_several_is_of_the_chosen_one(stand_in, runs):
    """The dashboard says which of those it showed."""
    stand_in.pick(runs[0].path)
    with live(runs[0]) as one, live(runs[1]) as two:
        _, code, text = shown(stand_in, "attach", choice=11)
        assert (code, one.wait(5), two.poll()) == (0, -signal.SIGTERM, None)
    assert f"{runs[0].path} drains: what is finished is being saved" in text


def test_a_dashboard_that_breaks_is_an_error(stand_in, runs):
    """What it said is seen above."""
    _, code, text = shown(stand_in, "attach", choice="crash")
    assert code == 1
    assert text.index("RuntimeError: the picture broke") < text.index("error: the dashboard ended (exit code 1)")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("attach",), "the dashboard needs a terminal; `--shot FILE` takes a picture"),
        (("replay",), "the dashboard needs a terminal"),
        (("replay", "--at", "soon"), "--at soon: is none of HH:MM:SS, MM:SS and seconds"),
        (("attach", "--size", "80x24"), "--size has no effect without --shot"),
        (("attach", "one", "--pick"), "--pick has no effect with a RUN that is named"),
        (("attach", "--shot", "x.svg", "--pick"), "--pick has no effect with --shot"),
        (("attach", "--shot", "x.svg", "--readonly"), "--readonly has no effect with --shot"),
        (("attach", "--shot", "x.svg", "--size", "80"), "--size 80: is not of the form 120x36"),
        (("attach", "--shot", "x.jpg"), "x.jpg: a picture is a .svg or a .png"),
        (("attach", "--shot", "x.svg", "three"), "no run 'three'"),
    ],
)
def test_what_cannot_be_is_refused(runs, arguments, words):
    """With the remedy, before anything is started."""
    with pytest.raises(ConfigError, match=words.replace("[", r"\[")):
        invoke(*arguments, "--dir", runs[0].path.parent)


def without_terminal(stand_in, *arguments, **environment):
    """A command without a terminal, with the stand-in."""
    return subprocess.run(
        [sys.executable, "-m", "engine.cli", *map(str, arguments)],
        cwd=stand_in.place,
        env=stand_in.environment | environment,
        capture_output=True,
        text=True,
        check=False,
    )


def test_a_picture_needs_no_terminal(stand_in, runs):
    """Of the size that is wished."""
    done = without_terminal(stand_in, "attach", "--shot", "x.svg", "--size", "80x24")
    assert (done.returncode, done.stdout) == (0, "wrote x.svg\n"), done.stderr
    assert (stand_in.place / "x.svg").read_text().startswith("<svg")
    argv = stand_in.shown()
    assert (argv[0], argv[1], argv[3:]) == (str(runs[1].path), "--shot", ["--size", "80x24"])


def test_a_png_without_chromium_names_the_remedy(monkeypatch, runs, tmp_path):
    """Before the dashboard is started."""
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(ConfigError, match=r"needs Chromium, .*apt-get install chromium fonts-firacode"):
        invoke("attach", "--shot", "x.png", "--dir", runs[0].path.parent)


def test_a_chromium_that_fails_is_an_error(monkeypatch, stand_in, runs, tmp_path):
    """With its last words; an older picture is not taken for the new one."""
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "chromium").write_text("#!/bin/sh\necho first >&2\necho no display >&2\nexit 3\n")
    (tmp_path / "bin" / "chromium").chmod(0o755)
    for name, value in stand_in.environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:/usr/bin:/bin")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "x.png").write_text("old")
    with pytest.raises(RunError, match=r"drew no x.png \(exit code 3\): no display"):
        invoke("attach", "--shot", "x.png")


@pytest.mark.slow
@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on PATH: apt-get install chromium")
def test_a_png_is_the_picture(stand_in, runs):
    """As large as the SVG says, and red to its edges as that is."""
    done = without_terminal(stand_in, "attach", "--shot", "x.png")
    assert done.returncode == 0, done.stderr
    pixels = imread(stand_in.place / "x.png")
    assert pixels.shape[:2] == (601, 800)
    # Its last row is 0.4 pixels high.
    assert (pixels[:600, :, :3] == (1, 0, 0)).all()


def test_a_replay_begins_where_it_is_wished(stand_in, runs):
    """The latest run from its beginning, or another from a time of its clock."""
    assert shown(stand_in, "replay")[0] == [str(runs[1].path), "--replay", "--speed", "1.0"]
    argv = shown(stand_in, "replay", "one", "--at", "00:31:00", "--speed", "20")[0]
    assert argv == [str(runs[0].path), "--replay", "--at", "1860.0", "--speed", "20.0"]


@pytest.mark.parametrize(
    ("text", "value"), [("00:31:00", 1860), ("1:02:03.5", 3723.5), ("31:00", 1860), ("90:00", 5400), ("75", 75)]
)
def test_a_time_is_read_as_people_write_it(text, value):
    """Hours, minutes and seconds, or fewer of them."""
    assert seconds(text) == value


@pytest.mark.parametrize("text", ["", "1:75", "1:2:3:4", "-3", "1h", "1:"])
def test_anything_else_is_no_time(text):
    """It is named."""
    with pytest.raises(ConfigError, match="is none of HH:MM:SS"):
        seconds(text)


def test_a_stop_guesses_no_run(runs):
    """One that is live is meant; of several, or none, one has to be named."""
    base = runs[0].path.parent
    with pytest.raises(ConfigError, match="no run is live"):
        invoke("runs", "stop", "--dir", base)
    assert invoke("runs", "stop", "two", "--dir", base) == (0, f"{runs[1].path} is not running\n")
    with live(runs[0]) as one, live(runs[1]) as two:
        with pytest.raises(ConfigError, match="these runs are live: one, two; name one"):
            invoke("runs", "stop", "--dir", base)
        two.kill()
        two.wait()
        with pytest.raises(RunError, match="its supervisor was killed while it drained"):
            invoke("runs", "stop", "--dir", base)
        assert one.wait(5) == -signal.SIGTERM


def test_a_stop_that_takes_too_long_says_so(monkeypatch, runs):
    """It is never waited for without end."""
    monkeypatch.setattr("engine.commands.runs._STOP_GRACE_S", -1e6)
    with live(runs[0]), pytest.raises(RunError, match=r"still drains after .* the same command stops it at once"):
        invoke("runs", "stop", "one", "--dir", runs[0].path.parent)
