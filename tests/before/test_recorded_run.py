"""A run that an earlier version recorded: every command that reads runs still does, and it resumes.

tests/data/recorded_run.tar.zst is `synth-engine run --config tiny` of three steps, made by commit e37543f with a pack
of 60 tasks, LoRA rank 2 and small segments; its two pictures are left out.
"""

import subprocess
import sys
import tarfile
from collections import Counter
from pathlib import Path

import orjson
import pytest
import zstandard

import engine
from tests.parts.places import ROOT

RECORDED = ROOT / "tests" / "data" / "recorded_run.tar.zst"
MODEL = Path(engine.__file__).parent / "assets" / "tiny-model"


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """The recorded run in a directory of its own, with the paths of this machine in it."""
    runs = tmp_path / "runs"
    with (
        RECORDED.open("rb") as packed,
        zstandard.ZstdDecompressor().stream_reader(packed) as tar,
        tarfile.open(fileobj=tar, mode="r|") as archive,
    ):
        archive.extractall(runs, filter="data")
    path = runs / "recorded"
    for name in ("run.toml", "manifest.json"):
        text = (path / name).read_text(encoding="utf-8")
        text = text.replace("/srv/synth-engine/engine/assets/tiny-model", str(MODEL)).replace("/srv/runs", str(runs))
        (path / name).write_text(text, encoding="utf-8")
    return path


def command(*argv: object) -> str:
    """What a command of `synth-engine` prints; it must succeed."""
    words = [sys.executable, "-m", "engine.cli", *map(str, argv)]
    done = subprocess.run(words, capture_output=True, text=True, stdin=subprocess.DEVNULL, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.mark.timeout(120)  # a dozen commands, each a process of its own
def test_every_reading_command_reads_it(run: Path, tmp_path: Path) -> None:
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
    for name in ("attach", "replay"):
        command(name, run, "--shot", tmp_path / f"{name}.svg")
        assert (tmp_path / f"{name}.svg").read_text(encoding="utf-8").startswith("<svg")


@pytest.mark.slow
def test_it_resumes(run: Path) -> None:
    """One step more: from the old checkpoint, on new groups only, and every promise holds over both halves."""
    command("run", "--resume", run, "--plain", "--set", "run.steps=4")
    lines = (run / "learner" / "steps.jsonl").read_bytes().splitlines()
    trained = Counter(group["id"] for line in lines for group in orjson.loads(line)["groups"])
    assert len(lines) == 4
    assert max(trained.values()) == 1
    assert "BROKEN" not in command("audit", run)
