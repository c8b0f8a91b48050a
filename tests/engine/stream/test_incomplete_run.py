"""A real run that loses a part of its stream, through the real command line: who says so, and who goes on."""

import os
import shutil
import signal
import subprocess
import sys
from collections import Counter

import pytest

from engine.processes.child import torch_environment
from engine.rundir.layout import RunDir, read_json, read_lines
from engine.stream.segment import CLOSED, Segment, segment_path
from tests.parts.incomplete_runs import content
from tests.parts.waiting import LONG_S, wait_until

ENVIRONMENT = {**torch_environment(1), "PYTHONPATH": "."}
STEPS = 4
SETS = (
    *(f"run.steps={STEPS}", "schedule.groups_per_step=4", "schedule.group_size=4", "learner.pace_s=0.1"),
    *("eval.every=0", "eval.heldout_tasks=3", "stream.low_water_mb=1"),
)
pytestmark = pytest.mark.slow


def synth(*arguments):
    """Exit code and output of a command."""
    argv = [sys.executable, "-m", "engine.cli", *map(str, arguments)]
    done = subprocess.run(argv, env=ENVIRONMENT, capture_output=True, text=True, check=False)
    return done.returncode, " ".join((done.stdout + done.stderr).split())


@pytest.fixture(scope="module")
def kept(tmp_path_factory):
    """A run of four steps that is done; the engine was some groups ahead."""
    base = tmp_path_factory.mktemp("kept")
    settings = [word for pair in SETS for word in ("--set", pair)]
    code, output = synth("run", "--config", "dry", "--plain", "--name", "r", "--dir", base, *settings)
    assert code == 0, output
    return RunDir(base / "r")


@pytest.fixture
def run(kept, tmp_path):
    """A copy of it."""
    shutil.copytree(kept.path, tmp_path / "r", symlinks=True)
    config = kept.config.read_text().replace(f'"{kept.path.parent}"', f'"{tmp_path}"')
    (tmp_path / "r" / "run.toml").write_text(config)
    return RunDir(tmp_path / "r")


def resumed(run, steps=STEPS + 2):
    """Going on with it for two more steps."""
    return synth("run", "--resume", run.path, "--plain", "--set", f"run.steps={steps}")


def uses(run):
    """How often every group was trained or dropped."""
    counted = Counter()
    for row in read_lines(run.learner / "steps.jsonl"):
        counted.update(group["id"] for group in row["groups"])
        counted.update(id_ for ids in row["dropped"].values() for id_ in ids)
    return counted


def cut_to(path, share):
    """A segment loses its tail."""
    with path.open("r+b") as file:
        file.truncate(int(file.seek(0, os.SEEK_END) * share))


def test_a_segment_that_was_cut(run, tmp_path):
    """Those who look name the groups and go on, the others refuse and change nothing; restoring it heals all."""
    path = segment_path(run.trajectories, 0)
    whole = path.read_bytes()
    cut_to(path, 1 / 3)
    before = content(run)
    missing = r"trained or dropped: g0000"
    for command in (("show", run.path), ("audit", run.path)):
        code, output = synth(*command)
        assert (code, missing in output) == (command[0] == "audit", True), output
    refusing = (
        ("verify", run.path),
        ("export", run.path, "--chat", tmp_path / "chat.jsonl"),
        ("rescore", run.path),
        ("run", "--resume", run.path, "--plain", "--set", f"run.steps={STEPS + 2}"),
    )
    for command in refusing:
        code, output = synth(*command)
        assert code == 1, (command, output)
        assert missing in output
        assert "records are incomplete" in output
        assert "Traceback" not in output
    assert content(run) == before
    path.write_bytes(whole)
    code, output = resumed(run)
    assert code == 0, output
    assert set(uses(run).values()) == {1}
    assert "every promise was kept" in output


def test_groups_that_no_step_used_are_given_up(run):
    """As the refusal says: without closed.json the run goes on, plays them again, and trains on each group once."""
    path, last = segment_path(run.trajectories, 0), list(read_lines(run.learner / "steps.jsonl"))[-1]
    with path.open("r+b") as file:
        file.truncate(last["cursor"][1])
    code, output = resumed(run)
    assert code == 1
    assert f"remove {run.trajectories / CLOSED} to give up" in output
    (run.trajectories / CLOSED).unlink()
    code, output = resumed(run)
    assert code == 0, output
    assert set(uses(run).values()) == {1}


def test_a_segment_that_is_there_twice(run):
    """Its groups would be trained on a second time."""
    shutil.copy(segment_path(run.trajectories, 0), segment_path(run.trajectories, 1))
    code, output = resumed(run)
    assert code == 1
    assert "it is segment 00000 under another number" in output
    assert set(uses(run).values()) == {1}


def test_an_evaluation_that_lost_its_end(run):
    """A measure on fewer tasks is not compared with one on all."""
    with Segment(run.eval, 0) as segment:
        offsets = [raw.offset for raw in segment.groups()]
    with segment_path(run.eval, 0).open("r+b") as file:
        file.truncate(offsets[-2])
    for command in (("verify", run.path), ("rescore", run.path), ("run", "--resume", run.path, "--plain")):
        code, output = synth(*command)
        assert (code, "2 of 3 groups are missing that measured v4 (heldout)" in output) == (1, True), output
    assert "2 of 3 groups are missing" in synth("show", run.path)[1]


def test_a_flipped_byte_in_an_earlier_group(run, tmp_path):
    """Nothing is written before it is found, and the groups after it are still shown."""
    path = segment_path(run.trajectories, 0)
    changed = bytearray(path.read_bytes())
    changed[len(changed) // 2] ^= 0xFF
    path.write_bytes(changed)
    for command in (("export", run.path, "--parquet", tmp_path / "p"), ("verify", run.path), ("rescore", run.path)):
        code, output = synth(*command)
        assert (code, "damaged, not torn" in output) == (1, True), output
    assert not (tmp_path / "p").exists()
    assert resumed(run)[0] == 1
    code, output = synth("show", run.path)
    assert (code, "damaged, not torn" in output, "newest groups" in output) == (0, True, True)
    code, output = synth("audit", run.path)
    assert (code, "damaged, not torn" in output, "Traceback" in output) == (1, True, False)


def test_a_picture_of_it_has_the_notice(run, tmp_path):
    """The dashboard of a run that is over, as one sees it."""
    cut_to(segment_path(run.trajectories, 0), 1 / 3)
    code, output = synth("attach", run.path, "--shot", tmp_path / "p.svg", "--size", "160x40")
    assert code == 0, output
    assert "incomplete:" in (tmp_path / "p.svg").read_text().replace("&#160;", " ")


def test_a_killed_run_goes_on(kept, tmp_path):
    """SIGKILL of everything, again and again: what was torn was not acknowledged, and nobody refuses."""
    settings = [word for pair in SETS for word in ("--set", pair)]
    argv = [sys.executable, "-m", "engine.cli", "run", "--plain"]
    first = [*argv, "--config", "dry", "--name", "r", "--dir", str(tmp_path), *settings]
    run = RunDir(tmp_path / "r")
    for life, wanted in ((first, 1), ([*argv, "--resume", str(run.path)], 2)):
        with subprocess.Popen(life, env=ENVIRONMENT, stdout=subprocess.DEVNULL, start_new_session=True) as process:
            wait_until(
                lambda wanted=wanted: (read_json(run.progress) or {"step": 0})["step"] >= wanted,
                LONG_S,
                while_runs=process,
            )
            for row in (read_json(run.processes) or {"processes": []})["processes"]:
                os.kill(row["pid"], signal.SIGKILL)
            process.kill()
        assert "incomplete" not in synth("show", run.path)[1]
    code, output = resumed(run, STEPS)
    assert code == 0, output
    assert set(uses(run).values()) == {1}
    assert synth("audit", run.path)[0] == 0
