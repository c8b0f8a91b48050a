"""engine.stream.integrity: what is missing is told by whoever looks, and refused by whoever would work on less."""

import re
import shutil

import pytest
from click.testing import CliRunner

from engine.cli import cli
from engine.errors import IncompleteError
from engine.processes.child import torch_environment
from engine.rundir.layout import RunDir
from engine.stream.integrity import Part, require_complete
from tests import incomplete_runs as runs
from tests.parts.recorded_runs import RecordedRun, small_pack

ENVIRONMENT = {**torch_environment(1), "PYTHONPATH": "."}
DAMAGES = {
    runs.cut_first: r"trajectories/00000\.seg: 1 group is missing that step 1 trained or dropped: g000001 \(there are 1 in 00000",
    runs.cut_last: r"trajectories/00001\.seg to 00002\.seg: 1 group is missing that step 3 trained or dropped: g000005",
    runs.delete_middle: r"trajectories/00001\.seg is gone.* 2 groups are missing that step 2 .*: g000002 to g000003",
    runs.delete_last: r"2 groups are missing that step 3 trained or dropped: g000004 to g000005",
    runs.empty: r"00000\.seg to 00001\.seg: 2 groups are missing that step 2 .*: g000002 to g000003 \(there are 2 in 00000\.seg, 0 in 00001",
    runs.flip_first_frame: r"00001\.seg, byte \d+: damaged, not torn.*footer names groups that cannot be read: g000002",
    runs.flip_unclosed: r"00000\.seg, byte \d+: damaged, not torn.* that step 1 trained or dropped: g000000 \(there are 1 in 00000",
    runs.flip_header: r"00001\.seg, byte 0: damaged, not torn",
    runs.cut_evaluations: r"eval/: 1 of 2 groups are missing that measured v3 \(heldout\)",
    runs.duplicate: r"00003\.seg, byte 0: it is segment 00000 .* 2 groups are there more than once: g000000 to g000001",
    runs.swap: r"00000\.seg, byte 0: it is segment 00001 .*00001\.seg, byte 0: it is segment 00000",
    runs.promise_more: r"closed\.json counts 7 groups, 6 are there",
    runs.lose_rows: r"learner/steps\.jsonl: no row of 2 steps that checkpoint-00003 goes on from: 1 to 2",
    runs.lose_rows_and_groups: r"checkpoint-00003 counts 6 groups up to byte \d+ of 00002\.seg, 5 are there",
    runs.take_of_another_run: r"00001\.seg, byte 0: it is of run other-00000000, not of recorded-",
}
"""Every way, and what is said of it."""
WHOLE_STREAMS = (runs.lose_rows,)
"""Ways that leave all episodes there."""
WHOLE_TRAINING = (*WHOLE_STREAMS, runs.cut_evaluations)


@pytest.fixture(scope="module")
def kept(tmp_path_factory):
    """A recorded run of three segments."""
    base = tmp_path_factory.mktemp("kept")
    return runs.in_segments(RecordedRun.make(base / "runs", small_pack(base / "small.jsonl")))


@pytest.fixture
def run(kept, tmp_path):
    """A copy of it."""
    shutil.copytree(kept.path, tmp_path / "r", symlinks=True)
    return RunDir(tmp_path / "r")


ways = pytest.mark.parametrize(("damage", "told"), DAMAGES.items(), ids=[way.__name__ for way in DAMAGES])


def invoke(*arguments):
    """A command's exit code and output; errors of this project are raised."""
    result = CliRunner().invoke(cli, [str(argument) for argument in arguments], catch_exceptions=False)
    return result.exit_code, " ".join(result.output.split())


def refused(run, *arguments):
    """What a command says that refuses the run, which stays as it was, byte by byte."""
    before = runs.content(run)
    with pytest.raises(IncompleteError) as caught:
        invoke(*arguments)
    assert runs.content(run) == before
    return str(caught.value)


def assert_told(told, said):
    """The words for one of the ways were said."""
    assert re.search(told, said), said


@ways
def test_verify_refuses_what_is_incomplete(run, damage, told):
    """By name, with a remedy; what steps.jsonl lacks is no matter of it."""
    damage(run)
    if damage in WHOLE_STREAMS:
        require_complete(run, Part.TRAINING, Part.EVALUATIONS, checksums=True)
        return
    said = refused(run, "verify", run.path)
    assert str(run.path) in said
    assert "Restore" in said
    assert_told(told, said)


@ways
def test_rescore_refuses_what_is_incomplete(run, damage, told, tmp_path):
    """No row is written."""
    damage(run)
    if damage in WHOLE_STREAMS:
        code, output = invoke("rescore", run.path)
        assert (code, "24" in output) == (0, True)
        return
    assert_told(told, refused(run, "rescore", run.path, "--out", tmp_path / "rows"))
    assert not (tmp_path / "rows").exists()


@ways
def test_export_refuses_an_incomplete_training_stream(run, damage, told, tmp_path):
    """No file is begun; what evaluations lack is no matter of it."""
    damage(run)
    for option, name in (("--chat", "chat.jsonl"), ("--parquet", "episodes.parquet")):
        if damage in WHOLE_TRAINING:
            assert invoke("export", run.path, option, tmp_path / name)[0] == 0
            continue
        assert_told(told, refused(run, "export", run.path, option, tmp_path / name))
        assert not (tmp_path / name).exists()


@ways
def test_resume_refuses_what_is_incomplete(run, damage, told):
    """Before anything starts: no process is recorded, and closed.json, which a start removes, is as it was."""
    damage(run)
    assert_told(told, refused(run, "run", "--resume", run.path, "--plain"))


@ways
def test_show_tells_what_is_missing_and_goes_on(run, damage, told):
    """With the groups that can be read."""
    damage(run)
    code, output = invoke("show", run.path)
    assert code == 0
    assert_told(told, output)
    assert "incomplete: " in output
    assert "newest groups" in output


@ways
def test_audit_tells_what_is_missing_and_goes_on(run, damage, told):
    """As broken promises, after all checks."""
    damage(run)
    code, output = invoke("audit", run.path)
    assert code == 1
    assert_told(told, output)
    assert "every acknowledged group can be read back" in output
