"""engine.stream.integrity: what is missing is told by whoever looks, and refused by whoever would work on less."""

import re
import shutil
import subprocess
import sys
import time

import orjson
import pytest
from click.testing import CliRunner

from engine.cli import cli
from engine.errors import ConfigError, IncompleteError, RunError
from engine.processes.child import torch_environment
from engine.rundir.layout import RunDir, read_json, read_lines, write_json
from engine.stream.frame import decode_payload
from engine.stream.integrity import RecordsPart, gaps, require_complete
from engine.stream.segment import CLOSED, Segment, segment_path
from tests.parts import incomplete_runs as runs
from tests.parts.recorded_runs import RecordedRun, evaluation, small_pack, write_stream

ENVIRONMENT = {**torch_environment(1), "PYTHONPATH": "."}
DAMAGES = {
    runs.cut_first: r"trajectories/00000\.seg: 1 group is missing that step 1 .*: g000001 \(there are 1 in 00000",
    runs.cut_last: r"trajectories/00001\.seg to 00002\.seg: 1 group is missing that step 3 trained or dropped: g000005",
    runs.delete_middle: r"trajectories/00001\.seg is gone.* 2 groups are missing that step 2 .*: g000002 to g000003",
    runs.delete_last: r"2 groups are missing that step 3 trained or dropped: g000004 to g000005",
    runs.empty: r"2 groups are missing that step 2 .*: g000002 to g000003 \(there are 2 in 00000\.seg, 0 in 00001",
    runs.flip_first_frame: r"00001\.seg, byte \d+: damaged, not torn.*footer names groups that cannot be read: g000002",
    runs.flip_unclosed: r"00000\.seg, byte \d+: damaged, not torn.* that step 1 .*: g000000 \(there are 1 in 00000",
    runs.flip_header: r"00001\.seg, byte 0: damaged, not torn",
    runs.cut_evaluations: r"eval/: 1 of 2 groups are missing that measured v3 \(heldout\)",
    runs.duplicate: r"00003\.seg, byte 0: it is segment 00000 .*more than once: g000000(,| to) g000001",
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
        require_complete(run, RecordsPart.TRAINING, RecordsPart.EVALUATIONS, checksums=True)
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


# --- no wolf is cried ---------------------------------------------------------------------------------------------


def learner_behind(run):
    """The last step is not made yet, and the engine is at work: no footer, no closed.json."""
    runs.write_rows(run, list(read_lines(run.learner / "steps.jsonl"))[:-1])
    shutil.rmtree(run.learner / "checkpoint-00003")
    torn_tail(run)


def torn_tail(run):
    """The last segment ends within a group, as SIGKILL leaves it; that group was not acknowledged."""
    last = runs.ends(run, 2)[-1]
    frame = segment_path(run.trajectories, 2).read_bytes()[:last][-1_000:]
    runs.cut(run, 2, last)
    with segment_path(run.trajectories, 2).open("ab") as file:
        file.write(b"SGF1" + frame[4:500])
    (run.trajectories / CLOSED).unlink()


def torn_earlier(run):
    """An engine was killed in an earlier life, and went on in a new segment."""
    runs.cut(run, 0, runs.ends(run, 0)[-1] + 10)


def begun_segment(run):
    """The engine was killed before the first byte of its segment."""
    segment_path(run.trajectories, 3).touch()


def row_before_kill(run):
    """The learner was killed between a checkpoint and its row, which the checkpoint holds."""
    runs.write_rows(run, list(read_lines(run.learner / "steps.jsonl"))[:-1])


def checkpoint_removed(run):
    """Somebody goes on from an earlier step."""
    shutil.rmtree(run.learner / "checkpoint-00003")


def checkpoint_unreadable(run):
    """The learner says so, with the remedy for that."""
    (run.learner / "checkpoint-00003" / "state.json").write_bytes(b"{")


def measured_again(run):
    """An evaluation was cut off by a kill, and its first tasks are there twice."""
    made = [decode_payload(raw.payload) for raw in frames(run.eval)]
    write_stream(run, run.eval, [*made[:2], *made])
    restore_evaluations(run)


def older_fields(run):
    """A version that did not write all of them yet."""
    rows = [{"step": row["step"], "groups": row["groups"]} for row in read_lines(run.learner / "steps.jsonl")]
    runs.write_rows(run, rows)
    write_json(run.learner / "checkpoint-00003" / "state.json", {"counters": {"step": 3}})
    write_json(run.progress, {"step": 3})
    write_json(run.trajectories / CLOSED, {"segments": 3})
    (run.eval / "evaluations.jsonl").write_bytes(b'{"name": "heldout_before", "version": 0, "mean": 0.5}\n')


def no_learner(run):
    """Nobody trains."""
    shutil.rmtree(run.learner)


def nothing_yet(run):
    """A run that was only prepared."""
    for path in (run.learner, run.trajectories, run.eval):
        shutil.rmtree(path)


def frames(directory):
    """The frames of the first segment."""
    with Segment(directory, 0) as segment:
        return list(segment.groups())


def restore_evaluations(run):
    """The rows that `write_stream` removed."""
    rows = [{**evaluation(name, version)} for name, version in (("heldout_before", 0), ("heldout_after", 3))]
    content = b"".join(orjson.dumps(row, option=orjson.OPT_APPEND_NEWLINE) for row in rows)
    (run.eval / "evaluations.jsonl").write_bytes(content)


SOUND = (
    learner_behind,
    torn_tail,
    torn_earlier,
    begun_segment,
    row_before_kill,
    checkpoint_removed,
    checkpoint_unreadable,
    measured_again,
    older_fields,
    no_learner,
    nothing_yet,
)


@pytest.mark.parametrize("checksums", [False, True], ids=["footers", "checksums"])
@pytest.mark.parametrize("change", [lambda _: None, *SOUND], ids=["sound", *(change.__name__ for change in SOUND)])
def test_nothing_is_missed_that_never_was_acknowledged(run, change, checksums):
    """Kills, live writers, older formats and removed checkpoints are no damage."""
    change(run)
    assert gaps(run, checksums=checksums) == []
    require_complete(run, checksums=checksums)


def test_a_footer_is_believed_unless_every_frame_is_read(run):
    """What looks often reads footers alone: a flipped byte of a closed segment is found by checksums only."""
    runs.flip_first_frame(run)
    assert gaps(run) == []
    assert [gap.groups for gap in gaps(run, checksums=True)] == [(), ("g000002",), ("g000002",)]


def test_what_nobody_used_can_be_given_up(run):
    """The refusal names the file to remove, and without it the run is complete."""
    runs.promise_more(run)
    with pytest.raises(IncompleteError, match=rf"remove {run.trajectories / CLOSED} to give up"):
        require_complete(run)
    (run.trajectories / CLOSED).unlink()
    require_complete(run)


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("learner/steps.jsonl", "line 1 is no step of a learner"),
        ("eval/evaluations.jsonl", "a row is not what synth-engine writes"),
    ],
)
def test_a_record_that_cannot_be_understood_is_named(run, name, told):
    """By who refuses as by who looks."""
    (run.path / name).write_bytes(b'{"step": [], "version": []}\n')
    with pytest.raises(RunError, match=rf"{name}: {told}"):
        require_complete(run)


def test_a_count_that_is_none_is_named(run):
    """The file that a writer leaves behind is a record too."""
    write_json(run.trajectories / CLOSED, {"segments": 3, "frames": "six"})
    with pytest.raises(RunError, match=r"trajectories/closed\.json: not the end of a stream .*restore it from a copy"):
        gaps(run)


def test_an_adapter_of_an_incomplete_run_can_be_exported(run, tmp_path):
    """It needs no episodes: only the model that is not there stops it."""
    runs.cut_first(run)
    result = CliRunner().invoke(cli, ["export", str(run.path), "--merged", str(tmp_path / "merged")])
    assert not isinstance(result.exception, IncompleteError)


def test_a_missing_group_is_said_to_be_missing(run):
    """Whoever asks for it by its id learns why it is not there."""
    runs.cut_first(run)
    with pytest.raises(ConfigError, match=r"it has no group g000001; .*incomplete: trajectories/00000\.seg: 1 group"):
        invoke("show", run.path, "g000001")


# --- processes ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("entry", ["engine", "learner"])
def test_a_process_that_is_started_alone_refuses_too(run, entry):
    """The engine would play the group again; a learner, whose file tells why, would train on it again."""
    runs.cut_first(run)
    before = runs.content(run)
    module = {"engine": ["engine.run"], "learner": ["engine.scripted", "learner"]}[entry]
    if entry == "learner":
        state = read_json(run.learner / "checkpoint-00003" / "state.json")["counters"]
        position = {"step": 3, "cursor": state["cursor"], "frames_read": state["frames_read"]}
        write_json(run.learner / "checkpoint-00003" / "state.json", {"position": position, "row": None})
        before = runs.content(run)
    argv = [sys.executable, "-m", *module, str(run.path)]
    done = subprocess.run(argv, env=ENVIRONMENT, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "1 group is missing that step 1 trained or dropped: g000001" in done.stderr
    after = runs.content(run)
    assert {name: after[name] for name in before if name != "log.jsonl"} == before


@pytest.mark.slow
def test_a_live_run_is_never_incomplete(tmp_path):
    """Whenever somebody looks at a run at work, by footers or by every frame."""
    sets = (
        "run.steps=4",
        "schedule.groups_per_step=4",
        "schedule.group_size=4",
        "eval.validation_tasks=4",
        "eval.heldout_tasks=4",
    )
    words = [word for pair in (*sets, "stream.low_water_mb=1") for word in ("--set", pair)]
    argv = [sys.executable, "-m", "engine.cli", "run", "--config", "dry", "--plain", "--name", "r", *words]
    run, looks = RunDir(tmp_path / "r"), 0
    with subprocess.Popen([*argv, "--dir", str(tmp_path)], env=ENVIRONMENT, stdout=subprocess.DEVNULL) as process:
        while process.poll() is None:
            looks += bool(read_json(run.progress))
            assert gaps(run, checksums=looks % 2 == 0) == []
            time.sleep(0.05)
    assert process.returncode == 0
    assert looks > 2
    assert gaps(run, checksums=True) == []
