"""A run that an earlier version recorded: every command that reads runs still does, and it resumes.

tests/data/recorded_run.tar.zst is `synth-engine run --config tiny` of three steps, made by commit e37543f with a pack
of 60 tasks, LoRA rank 2 and small segments; its two pictures are left out. Its paths begin with /srv.
"""

import os
import subprocess
import sys
import tarfile
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import orjson
import pytest
import zstandard

from engine.config.load import ASSETS, load
from engine.rundir.layout import RunDir, read_json
from learner.checkpoint import compared_settings, settings_sha256
from tests.parts.places import ROOT

RECORDED = ROOT / "tests" / "data" / "recorded_run.tar.zst"
MODEL = ASSETS / "tiny-model"


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """The recorded run in a directory of its own; its configuration names this machine's paths, nothing else does."""
    runs = tmp_path / "runs"
    with (
        RECORDED.open("rb") as packed,
        zstandard.ZstdDecompressor().stream_reader(packed) as tar,
        tarfile.open(fileobj=tar, mode="r|") as archive,
    ):
        archive.extractall(runs, filter="data")
    path = runs / "recorded"
    text = (path / "run.toml").read_text(encoding="utf-8")
    text = text.replace("/srv/synth-engine/engine/assets/tiny-model", str(MODEL)).replace("/srv/runs", str(runs))
    (path / "run.toml").write_text(text, encoding="utf-8")
    return path


@pytest.fixture
def command(tmp_path: Path) -> Callable[..., str]:
    """What a command prints that reads the run on a machine where nothing is accepted; it must succeed unasked."""
    environment = {**os.environ, "XDG_STATE_HOME": str(tmp_path / "state")}

    def printed(*argv: object, module: str = "engine.cli") -> str:
        words = [sys.executable, "-m", module, *map(str, argv)]
        done = subprocess.run(
            words, cwd=tmp_path, env=environment, capture_output=True, text=True, stdin=subprocess.DEVNULL, check=False
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    return printed


@pytest.mark.timeout(180)  # a dozen commands, each a process of its own
def test_every_reading_command_reads_it(run: Path, command: Callable[..., str], tmp_path: Path) -> None:
    """Each says what it said when the run was made."""
    assert "g000009" in command("show", run)
    assert "reward        0.67   (F 1  N 0.33  I 1.00)" in command("show", run, "g000003.01")
    assert "BROKEN" not in command("audit", run)
    assert "120 episodes verified: 120 identical" in command("verify", run)
    command("export", run, "--chat", tmp_path / "chat.jsonl", "--parquet", tmp_path / "episodes.parquet")
    assert len((tmp_path / "chat.jsonl").read_bytes().splitlines()) > 0
    assert "0.342 ± 0.074" in command("rescore", run)
    assert "tiny-heldout-00000" in command("world", "audit", run)
    assert "recorded" in command("runs", "list", "--dir", run.parent)
    command("metrics", "export", run, "--to", "tensorboard")


def test_the_dashboard_shows_it(run: Path, command: Callable[..., str], tmp_path: Path) -> None:
    """Its picture, and one of its replay, which `replay` shows on a terminal."""
    command("attach", run, "--shot", tmp_path / "attach.svg")
    command(run, "--replay", "--at", "5", "--shot", tmp_path / "replay.svg", module="tui")
    for name in ("attach", "replay"):
        picture = (tmp_path / f"{name}.svg").read_text(encoding="utf-8")
        assert picture.startswith("<svg")
        assert "recorded" in picture


def test_its_settings_are_hashed_as_then(run: Path) -> None:
    """The keys that were added to the configuration since, and where its model lies now, change nothing."""
    config = load(run / "run.toml").config
    state = read_json(run / "learner" / "checkpoint-00003" / "state.json") or {}
    assert settings_sha256(compared_settings(RunDir(run), config)) == state["config_sha256"]


@pytest.mark.slow
@pytest.mark.timeout(240)  # a server and several processes with torch
def test_its_model_plays_again(run: Path, command: Callable[..., str]) -> None:
    """A fork, and an evaluation, of its last adapter."""
    assert "g000003.01+00" in command("fork", run, "g000003.01@0", "-n", "2")
    assert "2 episodes, 0 masked" in command("eval", "--run", run, "--tasks", "2")


@pytest.mark.slow
@pytest.mark.timeout(240)  # a server and several processes with torch
def test_it_resumes(run: Path, command: Callable[..., str]) -> None:
    """One step more: from the old checkpoint, on new groups only, and every promise holds over both halves."""
    command("run", "--resume", run, "--plain", "--set", "run.steps=4")
    lines = (run / "learner" / "steps.jsonl").read_bytes().splitlines()
    trained = Counter(group["id"] for line in lines for group in orjson.loads(line)["groups"])
    assert len(lines) == 4
    assert max(trained.values()) == 1
    assert "BROKEN" not in command("audit", run)
