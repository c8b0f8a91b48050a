"""`runs remove` and `runs gc` delete runs of the runs directory and what lies in them, and nothing else."""

import os
import shutil
import subprocess
import sys

import orjson
import pytest
from click.testing import CliRunner

from engine.cli import cli
from engine.errors import ConfigError, RunError
from engine.rundir.layout import RunDir, read_json, remove_staged, write_json
from learner import merge
from tests.parts.recorded_runs import RecordedRun, small_pack


@pytest.fixture(scope="module")
def recorded(tmp_path_factory):
    """A recorded run, to be copied."""
    base = tmp_path_factory.mktemp("recorded")
    return RecordedRun.make(base / "runs", small_pack(base / "small.jsonl")).write().path


@pytest.fixture
def run(tmp_path, recorded, monkeypatch):
    """The run `mine` below runs/ of the working directory."""
    monkeypatch.chdir(tmp_path)
    return RunDir(shutil.copytree(recorded, tmp_path / "runs" / "mine", symlinks=True))


@pytest.fixture
def precious(tmp_path):
    """A directory of somebody's with a file in it, beside the runs directory."""
    path = tmp_path / "precious"
    path.mkdir()
    (path / "file").write_text("precious")
    return path


def runs(*arguments):
    """What `synth-engine runs` says; errors are raised."""
    result = CliRunner().invoke(cli, ["runs", *map(str, arguments)], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.output


def refused(*names, match, **options):
    """`runs remove` refuses, naming what it refuses."""
    with pytest.raises(ConfigError, match=match):
        runs("remove", *names, "--yes", *(word for name, value in options.items() for word in (f"--{name}", value)))


def test_a_directory_with_somebody_elses_manifest_stays(run, precious, monkeypatch):
    """A browser extension has a manifest.json too: by its path, from inside, and in the runs directory itself."""
    for place in (precious, run.path.parent / "extension"):
        place.mkdir(exist_ok=True)
        (place / "manifest.json").write_text('{"manifest_version": 3, "name": "my browser extension"}')
    refused(
        "extension", match=r"runs/extension is not removed, for it is no run of synth-engine .*manifest.json: format"
    )
    refused(precious, match="is not directly in runs")
    monkeypatch.chdir(precious)
    refused(".", match="'.' is not directly in runs: only runs of that directory are removed")
    assert (precious / "file").exists()


@pytest.mark.parametrize(
    "name", [".", "..", "runs", "runs/.", "runs/..", "mine/..", "runs/mine/..", "./", "mine/adapters"]
)
def test_no_way_of_writing_a_directory_leads_out(run, name):
    """The working directory, the runs directory and what lies in a run stay, even with a manifest of a run."""
    for place in (run.path.parent, run.path.parent.parent, run.adapters):
        shutil.copyfile(run.manifest, place / "manifest.json")
    refused(name, match="is not directly in runs|no run 'runs' in runs")
    assert run.manifest.exists()


def test_a_run_elsewhere_is_removed_only_with_its_directory(run, tmp_path):
    """An absolute path needs the runs directory in which it lies; then it is a name like any other."""
    elsewhere = RunDir(shutil.copytree(run.path, tmp_path / "archive" / "old", symlinks=True))
    refused(elsewhere.path, match="is not directly in runs.* pass --dir DIR")
    assert elsewhere.manifest.exists()
    assert f"removed {elsewhere.path}" in runs("remove", elsewhere.path, "--yes", "--dir", elsewhere.path.parent)
    assert not elsewhere.path.exists()
    runs("remove", "runs/mine", "--yes")
    assert not run.path.exists()


@pytest.mark.parametrize(
    "manifest", [None, b"", b"[]", b'{"format": 1}', b'{"format": 2, "run_id": "a-1"}', b"directory"]
)
def test_what_our_reader_does_not_accept_is_no_run(run, manifest):
    """Nothing, no JSON, no object, no id of a run, another format, no file."""
    run.manifest.unlink()
    if manifest == b"directory":
        run.manifest.mkdir()
    elif manifest is not None:
        run.manifest.write_bytes(manifest)
    refused("mine", match=r"is no run of synth-engine .*`rm -r` does it, if you are sure")
    assert run.config.exists()


@pytest.mark.parametrize("target", ["run", "directory", "file", "nothing"])
def test_of_a_link_only_the_link_is_removed(run, precious, target):
    """Whatever it points at stays, be it a run."""
    points_at = {"run": run.path, "directory": precious, "file": precious / "file", "nothing": precious / "none"}[
        target
    ]
    link = run.path.parent / "link"
    link.symlink_to(points_at)
    assert "a link; what it points at stays" in runs("remove", "link", "--yes")
    assert not link.is_symlink()
    assert run.manifest.exists()
    assert (precious / "file").exists()


def test_links_inside_a_run_are_not_followed(run, precious):
    """A sub-directory that was moved to another disk keeps its files; so does a linked file."""
    (run.path / "extra").symlink_to(precious)
    (run.learner / "notes").symlink_to(precious / "file")
    runs("remove", "mine", "--yes")
    assert not run.path.exists()
    assert (precious / "file").read_text() == "precious"


def test_a_runs_directory_that_is_a_link_is_the_directory_that_it_points_at(run, tmp_path):
    """People keep their runs on another disk."""
    (tmp_path / "runs").rename(tmp_path / "disk")
    (tmp_path / "runs").symlink_to(tmp_path / "disk")
    runs("remove", "mine", "--yes")
    assert (tmp_path / "runs").is_symlink()
    assert not (tmp_path / "disk" / "mine").exists()


def test_one_refused_name_leaves_all_of_them(run, precious):
    """All names are looked at before anything is removed."""
    refused("mine", precious, match="is not directly in runs")
    assert run.manifest.exists()
    runs("remove", "mine", "runs/mine", "--yes")
    assert not run.path.exists()


def test_a_run_that_is_worked_on_stays(run):
    """As ever; and it is a process that says so, with the exit code of a failure."""
    with run.locked():
        argv = [sys.executable, "-m", "engine.cli", "runs", "remove", "mine", "--yes"]
        done = subprocess.run(argv, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "another synth-engine is running it" in done.stderr
    assert run.manifest.exists()


def test_a_lock_that_is_a_link_empties_no_file(run, precious):
    """Every command that takes the lock would have written over what it points at."""
    (run.path / "lock").unlink(missing_ok=True)
    (run.path / "lock").symlink_to(precious / "file")
    for arguments in (("remove", "mine", "--yes"), ("gc", "mine")):
        with pytest.raises(OSError, match="symbolic link"):
            runs(*arguments)
    assert (precious / "file").read_text() == "precious"


def test_gc_touches_only_runs(run, precious):
    """Leftovers of a killed process are ours in a run alone: elsewhere they are somebody's files."""
    (precious / "manifest.json").write_text('{"manifest_version": 3}')
    (precious / ".notes.tmp-1").write_text("precious")
    with pytest.raises(RunError, match="format None is not 1"):
        runs("gc", precious)
    shutil.copytree(precious, run.path.parent / "theirs")
    assert "skipped theirs: " in runs("gc")
    assert (precious / ".notes.tmp-1").exists()
    assert (run.path.parent / "theirs" / ".notes.tmp-1").exists()


def test_gc_follows_no_link_out_of_a_run(run, tmp_path):
    """Adapters that lie elsewhere are not deleted there; a strange `best` keeps nothing and ends nothing."""
    (run.adapters / "best").unlink(missing_ok=True)
    (run.adapters / "best").symlink_to("..")
    runs("gc", "mine")
    assert run.versions() == [0, 3]
    elsewhere = tmp_path / "elsewhere"
    for name in ("v00001", "v00002", "v00003", ".v00004.tmp-1"):
        (elsewhere / name).mkdir(parents=True)
    shutil.rmtree(run.adapters)
    run.adapters.symlink_to(elsewhere)
    assert "0.0 MB freed" in runs("gc", "mine")
    assert len(list(elsewhere.iterdir())) == 4


def test_staged_leftovers_are_directories_not_links(tmp_path, precious):
    """What a learner that starts removes was staged by one that was killed."""
    (tmp_path / ".v1.tmp-1").mkdir()
    (tmp_path / ".v2.tmp-1").symlink_to(precious)
    remove_staged(tmp_path)
    assert not (tmp_path / ".v1.tmp-1").exists()
    assert (precious / "file").exists()


def test_a_merge_deletes_nothing_beside_its_place(tmp_path, monkeypatch):
    """A directory with the name that the merge used for its own was removed, whatever it was."""

    class Model:
        dtype = None

        def merge_and_unload(self):
            return self

        def to(self, _):
            return self

        def save_pretrained(self, path):
            path.mkdir()
            (path / "config.json").write_text("{}")

    for name, file in {"base": "config.json", "adapter": "adapter_config.json", ".out.tmp": "precious"}.items():
        (tmp_path / name).mkdir()
        (tmp_path / name / file).write_text("{}")
    monkeypatch.setattr(merge.AutoModelForCausalLM, "from_pretrained", lambda *_, **__: Model())
    monkeypatch.setattr(merge.PeftModel, "from_pretrained", lambda *_: Model())
    merge.merge(tmp_path / "base", tmp_path / "adapter", tmp_path / "out")
    assert (tmp_path / ".out.tmp" / "precious").exists()
    assert sorted(os.listdir(tmp_path)) == [".out.tmp", "adapter", "base", "out"]
    assert (tmp_path / "out").stat().st_mode & 0o777 == (tmp_path / "base").stat().st_mode & 0o777


@pytest.mark.parametrize("run_id", ["../../etc/x", "/etc/x", "", "a b", 3, None, "."])
def test_the_id_of_a_run_is_no_path(run, run_id):
    """It becomes part of the socket's path, which is removed before it is bound, and of the names of adapters."""
    write_json(run.manifest, {**(read_json(run.manifest) or {}), "run_id": run_id})
    with pytest.raises(RunError, match="is not the id of a run"):
        _ = run.run_id
    run.manifest.write_bytes(orjson.dumps({"format": 1, "run_id": "tiny-2.x-0123abcd"}))
    assert run.run_id == "tiny-2.x-0123abcd"
