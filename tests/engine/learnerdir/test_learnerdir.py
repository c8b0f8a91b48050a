"""engine.learnerdir: the files of a learner keep their form, and of another form are refused by name."""

import hashlib
import subprocess
import sys

import orjson
import pytest

from engine.errors import RunError
from engine.learnerdir.adapter import AdapterMeta, PublishedAdapter, is_published, read_published, write_adapter
from engine.learnerdir.checkpoint import CheckpointState, read_checkpoint
from engine.learnerdir.counters import DropReason, LearnerCounters
from engine.learnerdir.progress import LearnerProgress, LearnerState, read_progress, write_progress
from engine.learnerdir.steps import TrainedGroup, TrainedStep, read_steps
from engine.rundir.layout import RunDir, write_json
from tests.parts.places import ROOT

COUNTERS = (
    b'{"step":2,"version":2,"cursor":[0,640],"frames_read":5,"trained_groups":4,'
    b'"dropped":{"stale":0,"unscored":0,"failed":0,"zero_variance":1},"wait_s":1.5}'
)
STEP = (
    b'{"step":2,"version":2,"cursor":[0,640],"groups":[{"id":"g000003","advantages":[0.5,null,-0.5],"staleness":1,'
    b'"tokens":40}],"dropped":{"zero_variance":["g000002"]},"staleness_tokens":{"1":40},"flushed":false}'
)
SIMULATED_STEP = (
    b'{"step":2,"version":2,"cursor":[0,640],"groups":[{"id":"g000003","advantages":[0.0],"staleness":1}],'
    b'"dropped":{"stale":[],"unscored":[],"failed":[],"zero_variance":[]},"flushed":false}'
)
STATE = (
    b'{"counters":' + COUNTERS + b',"config_sha256":"ab","published":{"version":2,"cursor":[0,640],"loss":null},'
    b'"step_row":' + STEP + b',"metrics_row":{"learner/step_count":2}}'
)
SETTINGS = b'"settings":{"learner.lr":0.001,"run.seed":0},'
POSITION = COUNTERS.replace(b'"version":2,', b"")
SIMULATED_STATE = b'{"position":' + POSITION + b',"row":' + SIMULATED_STEP + b"}"
CURSOR = b'{"segment":0,"offset":640}'
PROGRESS = COUNTERS[:-1].replace(b"[0,640]", CURSOR) + b',"waiting":0,"step_s":0.25,"state":"running","error":""}'


@pytest.fixture
def run(tmp_path):
    """A run directory in which no learner has worked yet."""
    run = RunDir(tmp_path / "run")
    run.create()
    return run


@pytest.mark.parametrize(
    ("kind", "content"),
    [
        (LearnerCounters, COUNTERS),
        (TrainedStep, STEP),
        (TrainedStep, SIMULATED_STEP),
        (CheckpointState, STATE),
        (CheckpointState, STATE.replace(b'"published"', SETTINGS + b'"published"')),
        (LearnerProgress, PROGRESS),
    ],
)
def test_what_is_read_is_written_byte_for_byte(kind, content):
    """Keys in the order in which every earlier version wrote them; what a simulated learner leaves out stays out."""
    assert orjson.dumps(kind.of(orjson.loads(content)).value()) == content


def test_a_simulated_checkpoint_keeps_its_form_and_its_version_is_its_step():
    """Runs of before are resumed, and readers see one kind of checkpoint."""
    state = CheckpointState.of(orjson.loads(SIMULATED_STATE))
    assert (state.counters.version, state.counters.cursor, state.trained.groups[0].id) == (2, (0, 640), "g000003")
    assert orjson.dumps(state.simulated_value()) == SIMULATED_STATE


META = {
    "version": 2,
    "step": 2,
    "parent_version": 1,
    "cursor": [0, 640],
    "loss": None,
    "base_model": "models/tiny",
    "base_config_sha256": "ab",
    "adapter_sha256": hashlib.sha256(b"weights").hexdigest(),
    "bytes": 7,
    "dtype": "bfloat16",
    "r": 4,
    "alpha": 8,
    "target_modules": ["down_proj", "gate_proj", "k_proj", "o_proj", "q_proj", "up_proj", "v_proj"],
}
"""In the order of the file, whose last key is the time."""


def test_meta_of_an_adapter_keeps_its_form(run):
    """Byte for byte but for the time; what a simulated learner says less or elsewhere stays so."""
    step, base = dict(list(META.items())[:5]), {"base_model": "models/tiny", "base_config_sha256": "ab"}
    meta = AdapterMeta(step=step, base=base, dtype="bfloat16", rank=4, alpha=8)
    value = meta.value(b"weights")
    assert not is_published(run, 2)
    write_adapter(run, 2, {"adapter_model.safetensors": b"weights"}, value)
    told = {"format": 1, **META, "created_at": value["created_at"]}
    assert (run.adapter(2) / "meta.json").read_bytes() == orjson.dumps(told, option=orjson.OPT_INDENT_2)
    assert is_published(run, 2)
    assert read_published(run, 2) == PublishedAdapter(version=2, sha256=META["adapter_sha256"])
    del told["format"], told["cursor"], told["created_at"]
    simulated = {**told, "cursor": [0, 640], "created_at": value["created_at"], "simulated": True}
    found = {**meta.simulated_value(b"weights"), "created_at": value["created_at"]}
    assert orjson.dumps(found) == orjson.dumps(simulated)


def test_an_adapter_that_says_nothing_is_published(run):
    """None is what it did not say; one that is not there is no adapter."""
    assert read_published(run, 1) is None
    write_adapter(run, 1, {}, {})
    assert read_published(run, 1) == PublishedAdapter(version=None, sha256=None)


def test_counters_follow_the_open_step():
    """Reads and drops are counted at once, trained groups with their step: what was read adds up in between too."""
    before = LearnerCounters.of(orjson.loads(COUNTERS))
    opened = before.with_open(4, {DropReason.STALE: ["g000005"], DropReason.ZERO_VARIANCE: ["g000006"]})
    assert (opened.frames_read, opened.dropped_groups, opened.trained_groups) == (9, 3, 4)
    after = opened.after(2, (1, 0), 0.5)
    assert (after.step, after.version, after.cursor, after.trained_groups, after.wait_s) == (3, 3, (1, 0), 6, 2.0)
    assert after.trained_groups + after.dropped_groups == after.frames_read


def test_a_run_without_a_learner_yet_reads_as_zeros(run):
    """Nothing is written before its first word."""
    assert read_progress(run) == LearnerProgress()
    assert list(read_steps(run)) == []
    assert run.checkpoints() == []


def test_progress_is_replaced_and_read_back(run):
    """What is not said yet is zero: a file of another version may say less."""
    told = LearnerProgress.of(orjson.loads(PROGRESS))
    write_progress(run, told)
    assert read_progress(run) == told
    write_json(run.progress, {"step": 3, "state": "done"})
    assert read_progress(run) == LearnerProgress(counters=LearnerCounters(step=3), state=LearnerState.DONE)


@pytest.mark.parametrize("change", [{"state": "asleep"}, {"dropped": 3}, {"cursor": [0, 1]}, {"step": "two"}])
def test_progress_of_another_form_is_refused_by_name(run, change):
    """An unknown state is no state."""
    write_json(run.progress, {**orjson.loads(PROGRESS), **change})
    with pytest.raises(RunError, match=r"progress\.json: not the progress of a learner .+ restore it from a copy"):
        read_progress(run)


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        (b"{half", "is not JSON"),
        (b"[]", "is no step"),
        (b'{"step":3}', "is no step"),
        (STEP.replace(b"[0,640]", b"640"), "is no step"),
        (STEP.replace(b"null", b'"x"'), "is no step"),
    ],
)
def test_a_row_that_is_no_step_is_refused_by_its_line(run, line, reason):
    """The rows before it are read; a torn last line is no row."""
    run.steps.write_bytes(STEP + b"\n" + line + b"\n" + STEP)
    rows = read_steps(run)
    assert next(rows).groups[0] == TrainedGroup(id="g000003", advantages=(0.5, None, -0.5), staleness=1, tokens=40)
    with pytest.raises(RunError, match=rf"steps\.jsonl: line 2 {reason}"):
        next(rows)


def test_a_row_of_before_says_less(run):
    """Its version is its step, it names no place, and nothing was dropped; what it used are its groups."""
    run.steps.write_bytes(b'{"step":2,"groups":[{"id":"g000003","advantages":[0.0],"staleness":1}]}\n')
    [step] = read_steps(run)
    assert (step.version, step.cursor, step.dropped, step.used) == (2, (0, 0), {}, ("g000003",))


@pytest.mark.parametrize("lost", ["counters", "cursor", "frames_read", "step_row"])
def test_a_checkpoint_that_lacks_something_is_not_completed_by_zeros(run, lost):
    """From a cursor of zero every group would be trained again."""
    state = orjson.loads(STATE)
    state.pop(lost, None)
    state.get("counters", {}).pop(lost, None)
    run.checkpoint(2).mkdir()
    write_json(run.checkpoint(2) / "state.json", state)
    with pytest.raises(RunError, match=rf"checkpoint-00002: unreadable checkpoint \(KeyError\('{lost}'\)\); remove it"):
        read_checkpoint(run, 2)


def test_checkpoints_are_listed_by_step_without_what_is_staged(run):
    """A killed learner leaves staged directories; other names are not ours."""
    for name in ("checkpoint-00010", "checkpoint-00009", ".checkpoint-00011.tmp-1-2", "checkpoint-9x"):
        (run.learner / name).mkdir()
    assert run.checkpoints() == [9, 10]
    with pytest.raises(RunError, match=r"checkpoint-00010: unreadable checkpoint \(it has no state\.json\)"):
        read_checkpoint(run, 10)
    write_json(run.checkpoint(10) / "state.json", orjson.loads(STATE))
    assert read_checkpoint(run, 10).trained == TrainedStep.of(orjson.loads(STEP))


def test_the_contracts_load_no_torch():
    """Audit, supervisor and dashboard read them."""
    script = "import sys, engine.learnerdir.checkpoint, engine.learnerdir.progress; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, cwd=ROOT)
    assert done.stdout == "False\n"
