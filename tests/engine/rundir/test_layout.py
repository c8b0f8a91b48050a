"""engine.rundir: what a full disk does to files that are replaced and to files that grow."""

import subprocess
import sys

import pytest

from engine.errors import RunError
from engine.rundir.layout import JsonLines, RunDir, read_json, read_lines, write_directory, write_json


def test_rows_are_appended_behind_the_last_whole_one(tmp_path):
    """A torn last row is cut off before another could continue it; rows that are whole stay."""
    path = tmp_path / "rows.jsonl"
    for number in range(2):
        with JsonLines(path) as file:
            file.append({"n": number})
    path.write_bytes(path.read_bytes() + b'{"n": 2, "text": "' + b"x" * 100_000)
    assert [row["n"] for row in read_lines(path)] == [0, 1]
    with JsonLines(path) as file:
        file.append({"n": 3})
    assert [row["n"] for row in read_lines(path)] == [0, 1, 3]
    path.write_bytes(b"torn")
    with JsonLines(path) as file:
        file.append({"n": 4})
    assert list(read_lines(path)) == [{"n": 4}]


@pytest.mark.parametrize(
    ("target", "version"),
    [("v00003", 3), ("v00004", None), ("..", None), ("v", None), ("vnext", None), ("../../other/v00003", None)],
)
def test_best_is_a_version_of_the_run_or_none(tmp_path, target, version):
    """A link that somebody turned elsewhere names nothing."""
    run = RunDir(tmp_path / "run")
    run.create()
    run.adapter(3).mkdir()
    assert run.best is None
    (run.adapters / "best").symlink_to(target)
    assert run.best == version


def fill(path):
    """Append rows until something stops it."""
    with JsonLines(path) as file:
        for number in range(1_000):
            file.append({"n": number, "text": "x" * 1_000})


def test_a_full_disk_keeps_the_old_file_and_names_the_remedy(disk):
    """Replaced files stay as they were, grown ones lose at most the row that did not fit; the error says what to do."""
    path = disk("64k")
    write_json(path / "state.json", {"step": 1})
    with pytest.raises(RunError, match=r"rows\.jsonl could not be written: No space left on device; free space"):
        fill(path / "rows.jsonl")
    with pytest.raises(RunError, match=r"state\.json could not be written: No space left on device.*--resume"):
        write_json(path / "state.json", {"step": 2, "text": "x" * 10_000})
    with pytest.raises(RunError, match="v00001 could not be written: No space left on device"):
        write_directory(path / "v00001", {"weights": bytes(100_000)})
    assert read_json(path / "state.json")["step"] == 1
    assert not (path / "v00001").exists()
    kept = [row["n"] for row in read_lines(path / "rows.jsonl")]
    disk("1m")
    with JsonLines(path / "rows.jsonl") as file:
        file.append({"n": -1})
    assert [row["n"] for row in read_lines(path / "rows.jsonl")] == [*kept, -1]


@pytest.mark.slow
def test_a_run_on_a_full_disk_says_so_and_goes_on_when_there_is_room(disk):
    """A whole run fills a small file system: one clear sentence, exit code 1; with more room --resume ends it."""
    path = disk("3m")
    sets = ("stream.low_water_mb=0", "run.steps=60", "learner.pace_s=0.1", "eval.every=0", "eval.heldout_tasks=0")
    command = [sys.executable, "-m", "engine.cli", "run", "--plain"]
    arguments = ["--config", "dry", "--dir", str(path), *(text for pair in sets for text in ("--set", pair))]
    full = subprocess.run([*command, *arguments], capture_output=True, text=True, check=False)
    said = full.stdout + full.stderr
    assert full.returncode == 1, said
    assert "Traceback" not in said
    assert "disk is full" in said or "No space left on device" in said
    assert "--resume" in said
    disk("64m")
    run = RunDir(path / "dry")
    resumed = subprocess.run([*command, "--resume", str(run.path)], capture_output=True, text=True, check=False)
    assert resumed.returncode == 0, resumed.stdout + resumed.stderr
    summary = read_json(run.summary)
    assert (summary["steps"], summary["broken_promises"]) == (60, {})
