"""tui.tails, tui.files, tui.runs: what the files of a run tell while somebody writes them."""

import os
import time
from contextlib import closing
from itertools import pairwise

import orjson
import psutil
import pytest

from engine.config.load import load
from engine.preflight.manifest import create
from engine.rundir.layout import RunDir, write_json
from tests.parts.recorded_runs import small_pack
from tui.files import RunFiles, run_facts
from tui.runs import Life, last_words, life, runs_below
from tui.tails import NEWEST, SHOWN, FileTail, Newest, Thinned


def line(**row):
    """A row as a line."""
    return orjson.dumps(row, option=orjson.OPT_APPEND_NEWLINE)


@pytest.fixture
def tailed(tmp_path):
    """A file, what is kept of it, and its tail."""
    rows = Newest(1_000, "n")
    tail = FileTail(tmp_path / "rows.jsonl", rows)
    yield tail.path, rows.rows, tail
    tail.close()


def numbers(rows):
    """Their numbers."""
    return [row["n"] for row in rows]


def test_a_torn_line_waits(tailed):
    """Half a line is no row and no damage; its rest makes it one, and nothing is read twice."""
    path, rows, tail = tailed
    tail.read()
    path.write_bytes(line(n=1) + b'{"n":')
    tail.read()
    tail.read()
    assert numbers(rows) == [1]
    with path.open("ab") as file:
        file.write(b"2}\n" + line(n=3))
    tail.read()
    assert numbers(rows) == [1, 2, 3]
    assert tail.malformed == 0


def test_a_file_that_shrank_or_was_replaced_is_read_anew(tailed):
    """A learner cuts its rows back to its checkpoint: what is gone from the file is gone here."""
    path, rows, tail = tailed
    path.write_bytes(b"".join(line(n=number) for number in range(5)))
    tail.read()
    path.write_bytes(line(n=0) + line(n=1))
    tail.read()
    assert numbers(rows) == [0, 1]
    # As long as before, and the same file name: only its inode differs.
    other = path.with_name("other")
    other.write_bytes(line(n=7) + line(n=8))
    other.replace(path)
    tail.read()
    assert numbers(rows) == [7, 8]
    path.unlink()
    tail.read()
    assert numbers(rows) == []


def test_damaged_lines_are_counted(tailed):
    """What is not JSON, not an object, or not a row of this file is skipped; a huge line is no line."""
    path, rows, tail = tailed
    huge = b'{"n":1,"x":"' + b"x" * (3 << 20) + b'"}\n'
    path.write_bytes(line(n=1) + b"nonsense\n[]\n" + line(m=2) + huge + line(n=3) + huge[:-1])
    tail.read()
    assert numbers(rows) == [1, 3]
    assert tail.malformed == 4
    with path.open("ab") as file:
        file.write(b"\n" + line(n=4))
    tail.read()
    assert numbers(rows) == [1, 3, 4]
    assert tail.malformed == 5


def test_only_the_end_of_a_long_file(tmp_path):
    """A tail that wants so many bytes begins with the first whole line in them."""
    path, rows = tmp_path / "rows.jsonl", Newest(1_000, "n")
    path.write_bytes(b"".join(line(n=number) for number in range(100, 900)))
    with closing(FileTail(path, rows, newest_bytes=95)) as tail:
        tail.read()
    assert numbers(rows.rows) == list(range(891, 900))


def test_rows_are_thinned_out():
    """The newest stay whole, older ones evenly; a row that is shown stays until the distance doubles."""
    rows, shown = Thinned("n"), set()
    changes = 0
    for number in range(20_000):
        rows.add({"n": number})
        if number % 97 == 0 and number > 1_000:
            now = numbers(rows.until(float("inf")))
            changes += not shown <= set(now)
            shown = set(now[:-NEWEST])
    now = numbers(rows.until(float("inf")))
    assert SHOWN / 2 < len(now) <= SHOWN
    assert now[-NEWEST:] == list(range(20_000 - NEWEST, 20_000))
    older = now[:-NEWEST]
    assert older[0] == 0
    assert {after - before for before, after in pairwise(older)} == {64}
    assert changes <= 6
    assert len(rows._older) <= 4_096
    then = numbers(rows.until(5_000.0))
    assert then[-1] > 5_000 - 8
    assert max(then) <= 5_000


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A run directory that nobody has worked on."""
    base = tmp_path_factory.mktemp("made")
    pack = small_pack(base / "small.jsonl")
    return create(load("tiny", [f"run.dir={base}", "run.name=sources", f"tasks.pack={pack}", "run.steps=5"]).config)


@pytest.fixture
def run(made, tmp_path):
    """A copy of it."""
    path = tmp_path / "runs" / "sources"
    path.mkdir(parents=True)
    for name in ("manifest.json", "run.toml"):
        (path / name).write_bytes((made.path / name).read_bytes())
    (path / "learner").mkdir()
    return RunDir(path)


def test_facts(run):
    """The facts of a run, from its configuration and manifest."""
    facts = run_facts(run)
    assert facts.id.startswith("sources-")
    assert (facts.steps, facts.group_size, facts.groups_per_step, facts.max_staleness) == (5, 12, 10, 1)
    assert (facts.live_most, facts.model) == (240, "tiny-model")
    assert facts.tokenizer.name == "tokenizer.json"


def test_the_log(run):
    """Lines of structlog with the local time, their own values apart; the last 500."""
    when = "2026-11-29T05:52:14.688483Z"
    rows = [{"event": f"n{number}", "level": "info", "process": "engine", "timestamp": when} for number in range(600)]
    rows.append({"event": "evaluated", "level": "warning", "timestamp": when, "mean": 0.5})
    run.log.write_bytes(b"".join(line(**row) for row in rows))
    with closing(RunFiles(run)) as files:
        files.read()
        told = files.now()
    assert len(told.log) == 500
    last = told.log[-1]
    assert (last.level, last.process, last.event, last.values) == ("warning", "", "evaluated", {"mean": 0.5})
    assert len(last.time) == 8
    assert last.time[3:] == "52:14"


def test_the_log_of_a_run_that_was_stopped(run):
    """The run's clock stands still between two lives, and a phase that only the log has is passed over."""
    entered = (("12:00:00", "training"), ("12:00:10", "draining"), ("12:00:11", "lost"), ("15:00:00", "starting"))
    rows = [(when, "phase", {"phase": name}) for when, name in entered]
    rows += [("14:59:00", "a server", {}), ("15:00:05", "last", {})]
    history = [
        {"phase": name, "start_s": start_s} for name, start_s in (("training", 1), ("draining", 11), ("starting", 12))
    ]
    write_json(run.path / "phase.json", {"phase": "starting", "history": history})
    run.log.write_bytes(
        b"".join(
            line(timestamp=f"2026-01-01T{when}Z", event=event, process="engine", **more)
            for when, event, more in sorted(rows, key=str)
        )
    )
    with closing(RunFiles(run)) as files:
        files.read()
        seen = {at_s: [one.event for one in files.at(at_s).log] for at_s in (5.0, 11.9, 12.0, 16.9, 17.0)}
    assert [len(events) for events in seen.values()] == [1, 2, 5, 5, 6]
    assert seen[12.0][-2:] == ["a server", "phase"]
    assert seen[17.0][-1] == "last"


def test_a_file_that_cannot_be_read_is_told(run):
    """One file that is damaged, or no file, costs what is in it; the others are read."""
    run.metrics.write_bytes(line(**{"time/run_s": 1.0}) + b"damage\n")
    run.swaps.mkdir()
    (run.path / "phase.json").write_text('{"format": 99}')
    with closing(RunFiles(run)) as files:
        files.read()
        told = files.now()
    assert told.clock_s == 1.0
    assert "swaps.jsonl cannot be read: Is a directory" in told.note
    assert "1 lines of metrics.jsonl are damaged" in told.note
    assert "phase.json: format 99 is not 1" in told.note


# --- who works on a run ---------------------------------------------------------------------------------------------


def row(name="engine", *, off_s=0.0):
    """The process of the test as a child in processes.json; with `off_s`, one that had its pid before."""
    return {"name": name, "pid": os.getpid(), "started": psutil.Process().create_time() + off_s, "argv": []}


def processes(run, *rows, off_s=0.0, ending=None):
    """Writes processes.json of a supervisor with this process's pid."""
    own = {"supervisor": os.getpid(), "supervisor_started": psutil.Process().create_time() + off_s}
    write_json(run.processes, {**own, "ending": ending, "processes": list(rows)})


def phase(run, name):
    """Writes phase.json."""
    write_json(run.path / "phase.json", {"phase": name, "history": [{"phase": name, "start_s": 0.0}]})


def test_life(run):
    """By pid and start time, and by what the supervisor wrote last."""
    assert life(run) is Life.NEW
    phase(run, "training")
    assert life(run) is Life.LOST
    processes(run, row(off_s=-100), off_s=0)
    assert life(run) is Life.ALIVE
    # The supervisor was killed, and its children drain.
    processes(run, row(), off_s=-100)
    assert life(run) is Life.ALIVE
    processes(run, row(off_s=-100), off_s=-100)
    assert life(run) is Life.LOST
    phase(run, "done")
    assert life(run) is Life.ENDED
    phase(run, "draining")
    processes(run, ending={"code": 130, "message": "stopped; what was finished is saved\nmore"})
    assert life(run) is Life.ENDED
    assert last_words(run) == "stopped; what was finished is saved"


def test_the_list_of_runs(run):
    """Newest first, with what their last lines say; a broken one with its reason; `latest` is none."""
    base = run.path.parent
    (base / "latest").symlink_to("sources")
    phase(run, "training")
    processes(run, row())
    write_json(run.progress, {"step": 3})
    run.metrics.write_bytes(
        b"".join(line(**{"time/run_s": number, "reward/train_mean": number / 10_000}) for number in range(5_000))
    )
    broken = base / "broken"
    broken.mkdir()
    (broken / "manifest.json").write_text("{")
    os.utime(broken / "manifest.json", (time.time() - 500, time.time() - 500))
    (base / "bare").mkdir()
    first, second = runs_below(base)
    assert (first.name, first.state, first.step, first.steps, first.reward) == ("sources", "live", 3, 5, 0.4999)
    assert first.age_s < 100
    assert (second.name, second.state) == ("broken", "unreadable")
    assert "not valid JSON" in second.problem
    assert runs_below(base / "nowhere") == []
