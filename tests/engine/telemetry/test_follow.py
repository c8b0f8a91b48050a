"""engine.telemetry.follow: each row once, from whole lines, with counters that go on over restarts."""

from datetime import UTC, datetime

import orjson
import pytest

from engine.errors import RunError
from engine.rundir.layout import RunDir, write_atomic, write_json
from engine.telemetry import engine_metrics, learner_metrics
from engine.telemetry.follow import Follower

MADE = datetime(2026, 1, 2, tzinfo=UTC)


@pytest.fixture
def run(tmp_path):
    """A run that has written nothing yet."""
    made = RunDir(tmp_path)
    made.create()
    write_json(made.manifest, {"run_id": "met-01234567", "created_at": "2026-01-02T00:00:00Z"})
    return made


def lines(*rows):
    """Rows as a file has them."""
    return b"".join(orjson.dumps(row) + b"\n" for row in rows)


def engine_row(run_s, **counters):
    """A row of the engine; `episodes_finished_count=3` is `episodes/finished_count`."""
    return {engine_metrics.RUN_S: run_s, **{key.replace("_", "/", 1): value for key, value in counters.items()}}


def add(path, content):
    """Append, as a writer does."""
    with path.open("ab") as file:
        file.write(content)


def test_rows_come_once_and_whole(run):
    """Half a line waits for its other half; nothing comes twice, and no file is no row."""
    follower = Follower(run)
    assert list(follower.read()) == []
    whole = lines(engine_row(0.4), engine_row(1.5))
    add(run.metrics, whole[:-9])
    assert [sample.values for sample in follower.read()] == [engine_row(0.4)]
    assert list(follower.read()) == []
    add(run.metrics, whole[-9:])
    [sample] = follower.read()
    assert (sample.step, sample.axis) == (1, "time/run_s")
    assert sample.wall_s == MADE.timestamp() + 1.5


def test_counters_go_on_where_an_earlier_engine_stopped(run):
    """Also one that the new engine has not counted yet, and one whose first value is above the last one before."""
    add(run.metrics, lines(engine_row(1, turns_finished_count=7, judge_asked_count=2)))
    follower = Follower(run)
    assert [sample.values["turns/finished_count"] for sample in follower.read()] == [7]
    add(run.metrics, lines(engine_row(2, turns_finished_count=3), engine_row(3, turns_finished_count=4)))
    add(run.metrics, lines(engine_row(4, turns_finished_count=4, judge_asked_count=9)))
    seen = [(sample.values["turns/finished_count"], sample.values["judge/asked_count"]) for sample in follower.read()]
    assert seen == [(10, 2), (11, 2), (11, 11)]


def test_gauges_fall_and_totals_do_not(run):
    """A total is the run's own: a new engine that has read little of the stream yet does not start it again."""
    rows = [engine_row(at_s, groups_written_count=total, episodes_live_count=total) for at_s, total in ((1, 5), (2, 3))]
    add(run.metrics, lines(*rows, engine_row(3, groups_written_count=6, episodes_live_count=6)))
    seen = [sample.values for sample in Follower(run).read()]
    assert [values["groups/written_count"] for values in seen] == [5, 5, 6]
    assert [values["episodes/live_count"] for values in seen] == [5, 3, 6]


def test_a_learner_that_cuts_its_file_back_repeats_no_step(run):
    """The file is replaced by a shorter one, and grows again: only the step that is new comes."""
    path = run.learner / "metrics.jsonl"
    rows = [{learner_metrics.STEP: step, learner_metrics.STEP_TIME: 2.0, "learner/wait_s": 1.0} for step in (1, 2, 3)]
    add(path, lines(*rows[:2]))
    follower = Follower(run)
    assert [(sample.step, sample.wall_s - MADE.timestamp()) for sample in follower.read()] == [(1, 3.0), (2, 6.0)]
    write_atomic(path, lines(rows[0]))
    assert list(follower.read()) == []
    add(path, lines(*rows[1:]))
    assert [(sample.step, sample.wall_s - MADE.timestamp()) for sample in follower.read()] == [(3, 9.0)]


def test_null_is_no_number_and_garbage_is_said(run):
    """NaN is null in JSON; a whole line that is not JSON names the file and the place."""
    add(run.metrics, lines({**engine_row(1), "reward/train_mean": None}) + b"{]\n")
    samples = Follower(run).read()
    assert next(samples).values == engine_row(1)
    with pytest.raises(RunError, match=r"metrics\.jsonl: the line at byte \d+ is not JSON"):
        next(samples)
