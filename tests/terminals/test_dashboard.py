"""The real dashboard on a terminal, in front of a real engine: every key, other sizes, kills, a slow line."""

import base64
import os
import re
import signal
import subprocess
import sys
import time
from dataclasses import replace

import orjson
import pytest

from engine.processes.alive import lives
from engine.rundir.layout import RunDir, read_json
from engine.supervise.background import supervisor_of
from tests.parts.children import child
from tests.parts.recorded_runs import RecordedRun, small_pack
from tests.parts.screens import Screen
from tests.parts.terminals import end
from tests.parts.tui_canned import talk
from tests.parts.waiting import wait_until
from tui.story import blocks

BUSY = (
    *("run", "--config", "dry", "--set", "policy.script=engine.scripted:SlowPolicy", "--set", "run.steps=5000"),
    *("--set", "learner.pace_s=0.5", "--set", "schedule.group_size=4", "--set", "schedule.groups_per_step=4"),
    *("--set", "schedule.max_staleness=3", "--set", "eval.heldout_tasks=0", "--set", "eval.every=0"),
)
"""At most 64 live episodes of some ten seconds, for hours."""
HOSTILE = "\x1b]0;owned\x07\x1b[2J\x1b[31m"
UP, DOWN, RIGHT, LEFT, PAGE_UP, PAGE_DOWN = "\x1b[A", "\x1b[B", "\x1b[C", "\x1b[D", "\x1b[5~", "\x1b[6~"
ESCAPE, ENTER, TAB, CTRL_P, CTRL_Q, CTRL_X = "\x1b", "\r", "\t", "\x10", "\x11", "\x18"
STARTS_S = 120
"""Until an engine runs, or runs again."""
LIVE = re.compile(r"^│.(g\d{6}\.\d\d) .* P policy ", re.MULTILINE)


@pytest.fixture(scope="module")
def busy(tmp_path_factory):
    """A run that goes on, without a viewer; nothing of it outlives the tests."""
    place = tmp_path_factory.mktemp("busy")
    run = RunDir(place / "runs" / "dry")
    argv = [sys.executable, "-m", "engine.cli", *BUSY, "--plain"]
    with child(*argv, cwd=place, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL):
        try:
            wait_until(run.socket.exists, STARTS_S)
            yield run
        finally:
            end(run)


@pytest.fixture
def attached(busy):
    """A viewer of it, with live episodes in sight."""
    with Screen(busy.path.parents[1], "attach") as front:
        front.shows("● live", timeout_s=STARTS_S)
        front.until(lambda: LIVE.search(front.text))
        yield front


@pytest.fixture(scope="module")
def recorded(tmp_path_factory):
    """A run that ended, in which every message wants the terminal to do something."""
    place = tmp_path_factory.mktemp("recorded")
    made = RecordedRun.make(place / "runs", small_pack(place / "small.jsonl"))
    for group in made.groups:
        for episode in group.episodes:
            for message in episode.messages:
                message["content"] += f" {HOSTILE} planted"
    return made.write()


def engine_of(run):
    """The pid of the engine."""
    return next(row["pid"] for row in read_json(run.processes)["processes"] if row["name"] == "engine")


def cursor(front):
    """The line within its frame on which the cursor of a table or a transcript stands."""
    top = 0
    for y, line in enumerate(front.text.splitlines()):
        if line.startswith("│▸"):
            return y - top
        top = y if line.startswith("╭") else top
    return None


def moves_cursor(front, keys, holds):
    """Press keys, until the cursor's line is as it should be."""
    front.until(lambda: cursor(front) is not None)
    before = cursor(front)
    front.press(keys.encode())
    front.until(lambda: (now := cursor(front)) is not None and holds(before, now))


def copied(front):
    """What the terminal was told to put into its clipboard last; nothing before all of it has come."""
    found = re.findall(rb"\x1b]52;c;([\w+/=]*)\x07", front.raw)
    return base64.b64decode(found[-1]).decode() if found else ""


@pytest.mark.slow
def test_a_run_is_left_looked_at_again_and_stopped(tmp_path):
    """As a user does it: `run`, detach, `attach --readonly`, `attach`, stop; the terminal is as it was each time."""
    run = RunDir(tmp_path / "runs" / "dry")
    try:
        with Screen(tmp_path, *BUSY) as front:
            front.shows("● live", "P policy", timeout_s=STARTS_S)
            front.until(lambda: LIVE.search(front.text))
            assert not front.restored()
            front.types("q", "detach")
            front.types(ESCAPE, "● live", without=("detach",))
            front.press(b"qd")
            assert front.ended() == 0, front.text
            assert front.restored()
            assert f"synth-engine attach {run.path}" in front.text.replace("\n", "").replace(" " * 20, "")
        supervisor = supervisor_of(run)
        with Screen(tmp_path, "attach", "--readonly") as viewer:
            viewer.shows("● live", timeout_s=STARTS_S)
            viewer.until(lambda: LIVE.search(viewer.text))
            viewer.types(CTRL_X, "--readonly: the run cannot be")
            viewer.types("x", "--readonly: no episode can be")
            viewer.press(b"q")
            assert viewer.ended() == 0, viewer.text
            assert viewer.restored()
        assert supervisor_of(run).pid == supervisor.pid
        with Screen(tmp_path, "attach") as viewer:
            viewer.shows("● live", timeout_s=STARTS_S)
            viewer.types(CTRL_X, "Stop the run?")
            viewer.press(b"s")
            assert viewer.ended() == 0, viewer.text
            assert viewer.restored()
        wait_until(lambda: "! draining" in (run.path / "supervisor.log").read_text(), STARTS_S)
    finally:
        end(run)
    assert not lives(supervisor)


@pytest.mark.slow
def test_keys_that_work_everywhere(attached):
    """Each has its effect, and the picture goes on."""
    attached.types("2", "gradient norm")
    attached.types("3", "pipeline")
    attached.types("4", "newest first")
    attached.types("1", "turns/s")
    for down, up in (("j", "k"), (DOWN, UP), (PAGE_DOWN, PAGE_UP)):
        moves_cursor(attached, down, lambda before, now: now > before)
        moves_cursor(attached, up, lambda before, now: now < before)
    moves_cursor(attached, "G", lambda before, now: now > before + 5)
    moves_cursor(attached, "g", lambda before, now: now < before - 5)
    attached.types(" ", "frozen: space goes on")
    before = attached.clock()
    # Two pictures long: none of them comes.
    time.sleep(1.2)
    assert attached.clock() == before
    attached.types(ENTER, "─ rubric ─", "▌ task", "frozen")
    attached.types(ESCAPE, "turns/s")
    attached.types(" ", without=("frozen",))
    attached.moves()
    for key in "+--++":
        attached.press(key.encode())
    attached.moves()
    attached.types("?", "shift+tab")
    attached.types("?", without=("shift+tab",))
    attached.types(CTRL_P, "Search for commands", "Filter  (slash)")
    attached.types("reverse", "Reverse  (S)", without=("Filter  (slash)",))
    attached.types(ENTER, "age↑")
    attached.types(CTRL_X, "Stop the run?")
    attached.types(ESCAPE, without=("Stop the run?",))
    attached.moves()
    attached.press(b"q")
    assert attached.ended() == 0, attached.text
    assert attached.restored()


@pytest.mark.slow
def test_keys_of_the_rollouts(attached):
    """Filter, histogram, order, groups, copying, cancelling; what is told covers the corner below for a while."""
    attached.types("/", "turn>5 task~retail")
    attached.types("phase=policy" + ENTER, "filter phase=policy", without=("D done  ",))
    attached.types(ESCAPE, without=("filter phase",))
    # Three charts are in between.
    attached.types(TAB * 4, "Pick", "0.00-0.05: ")
    attached.types(RIGHT * 30, "0.95-1.00: ")
    attached.types(LEFT, "0.90-0.95: ")
    attached.types(RIGHT + ENTER, "filter reward>=0.95 reward<=1")
    attached.until(lambda: " 1.00" in attached.line("▸g"))
    attached.types(ESCAPE, without=("filter reward",))
    attached.types("s", "wait↓", "sort wait ↓")
    attached.types("S", "wait↑", "sort wait ↑")
    attached.types("b", "by group")
    attached.types("b", "sort wait ↑")
    attached.types("f", "age↑", "sort age ↑")
    attached.types(" ", "frozen")
    attached.types("y", "copied g")
    chosen = copied(attached)
    assert chosen in attached.text
    attached.types("x", f"Cancel episode {chosen}?")
    attached.types(ESCAPE, without=("Cancel episode",))
    attached.types("x", f"Cancel episode {chosen}?")
    attached.types("c", f"{chosen} is being")
    attached.types(" ", without=("frozen",))
    attached.types("/", "turn>5 task~retail")
    attached.types("outcome=infra_error" + ENTER, chosen, without=("P policy  ",))
    attached.types("/", "▊  outcome")
    attached.types(" colour=red" + ENTER, "no field colour")
    attached.types(ESCAPE, without=("▊  outcome",))
    attached.types(ESCAPE, "P policy  ")
    attached.moves()


@pytest.mark.slow
def test_keys_of_an_episode(attached):
    """Its neighbours, its tokens, its group, what is found, folded and copied."""
    # The others of the table would move below the cursor.
    group = LIVE.search(attached.text)[1][:7]
    attached.types("b", "by group")
    attached.types("/", "turn>5 task~retail")
    attached.types(f"group={group}{ENTER}", f"filter group={group}", f"▸{group}.00", f"{group}.03")
    attached.types(ENTER, "─ rubric ─", "▌ task", "following · f leaves")
    head = re.compile(r"│(g\d{6}\.\d\d)   tiny")
    first = head.search(attached.text)[1]

    def goes_to(key, holds):
        attached.press(key.encode())
        attached.until(lambda: (found := head.search(attached.text)) is not None and holds(found[1]))

    goes_to("n", lambda now: now != first)
    goes_to("p", lambda now: now == first)
    goes_to("N", lambda now: now != first and now[:7] == first[:7])
    goes_to("P", lambda now: now == first)
    attached.types("t", "tokens given, not trained")
    attached.types("t", "▌ task")
    attached.types("v", "─ turn by turn", f"{first[:7]}.03")
    attached.types(ESCAPE, "─ rubric ─")
    attached.types("f", "f follows")
    attached.types("f", "following · f leaves")
    attached.types("x", "▌ task  ", "⋯ 1 line")
    attached.types("e", without=("⋯",))
    attached.types("/", "find in the transcript")
    attached.types("the" + ENTER, " places; n and p go through")
    moves_cursor(attached, "n", lambda before, now: now != before)
    moves_cursor(attached, "p", lambda before, now: now != before)
    for key, words in {"i": first, "t": "\ntask\n", "j": '"role":"assistant"', "c": f"dry {first}"}.items():
        attached.types("y", f"Copy of {first}")
        attached.types(key, "copied the ", without=("Copy of",))
        attached.until(lambda words=words: words in copied(attached))
    attached.moves()
    # Once out of the search, once out of the episode.
    attached.types(ESCAPE, "─ rubric ─")
    attached.moves()
    attached.types(ESCAPE, "turns/s")


@pytest.mark.slow
def test_keys_of_the_log(attached, busy):
    """Words, level, a line in full, and the episode that it names."""
    attached.types("1f", "sort age ↑")
    attached.until(lambda: LIVE.search(attached.text))
    attached.types("x", "Cancel episode")
    attached.types("c", without=("Cancel episode",))
    attached.types("4", "an operator cancels", "newest first")
    attached.types("/", "words in a line")
    attached.types("operator" + ENTER, "newest first · all · operator", without=("phase=training",))
    attached.types(ENTER, "episode: g", "an operator cancels an episode")
    attached.types(ESCAPE, without=("episode: g",))
    attached.types("l", "newest first · info")
    attached.types("ll", "newest first · error", without=("operator cancels",))
    attached.types("l", "newest first · all", "an operator cancels")
    attached.types("o", "─ rubric ─", "tiny-train")
    attached.types(ESCAPE, "newest first")
    attached.moves()


@pytest.mark.slow
def test_another_size(attached):
    """80 x 24 and back: the table stays, the charts go and come."""
    attached.shows("─ newest rewards")
    attached.resize(80, 24)
    attached.shows("● live", "P policy", "^p palette", without=("─ newest rewards",))
    assert max(map(len, attached.text.splitlines())) == 80
    attached.types("2", "gradient norm")
    attached.types("1" + ENTER, "│▸", "Tokens", without=("─ rubric ─",))
    attached.resize(120, 36)
    attached.shows("Tokens", "─ rubric ─")
    attached.types(ESCAPE, "─ newest rewards", "turns/s")
    attached.moves()


@pytest.mark.slow
def test_an_engine_that_is_killed_is_found_again(attached, busy):
    """The state on top says so, and says when it lives again; the dashboard is the same process."""
    drawn, killed = attached.dashboard(), engine_of(busy)
    os.kill(killed, signal.SIGKILL)
    attached.until(lambda: "● live" not in attached.text, STARTS_S)
    attached.shows("● live", timeout_s=STARTS_S)
    assert engine_of(busy) != killed
    attached.until(lambda: LIVE.search(attached.text), STARTS_S)
    assert attached.dashboard().pid == drawn.pid
    attached.moves()


@pytest.mark.slow
def test_a_slow_terminal_costs_the_engine_nothing(attached, busy):
    """2 kB/s: metrics come at their pace, the loop does not wait, the dashboard does not grow, and is usable after."""
    drawn = attached.dashboard()
    # A screen, and what compares the records, are loaded when they are first needed: that is no growth.
    for key in "234":
        attached.press(key.encode())
        attached.moves()
    attached.types("1", "turns/s")
    before, began, sent = drawn.memory_info().rss, rows_of(busy), len(attached.raw)
    attached.bytes_per_s = 2_000
    for key in "2314" * 5:
        attached.press(key.encode())
        time.sleep(0.5)
    met = rows_of(busy)[len(began) :]
    assert len(met) >= 9
    assert max(row["loop/lag_p99_s"] for row in met) < 0.05
    assert len(attached.raw) - sent < 25_000
    attached.bytes_per_s = 0
    attached.shows("newest first", "● live")
    attached.types("1", "turns/s")
    attached.moves()
    assert drawn.memory_info().rss < before + 16e6


def rows_of(run):
    """The engine's metrics, as far as they are whole lines."""
    return [orjson.loads(line) for line in run.metrics.read_bytes().split(b"\n")[:-1]]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_a_signal_leaves_the_terminal_as_it_was(recorded, number):
    """To the dashboard."""
    with Screen(recorded.path.parents[1], "attach", recorded.path) as front:
        front.shows("○ ended")
        assert not front.restored()
        front.dashboard().send_signal(number)
        assert front.ended() == 0, front.text
        assert front.restored()


@pytest.mark.slow
def test_a_replay_is_driven_by_keys(recorded):
    """Its clock goes, stands, and is moved."""
    with Screen(recorded.path.parents[1], "replay", recorded.path, "--speed", "0.5") as front:
        front.shows("▶ replay", "x 0.5")
        front.moves()
        front.types(" ", "held: space goes on")
        front.types("<", "00:00:00")
        front.types(".", "00:00:01")
        front.types(".", "00:00:02")
        front.types(",", "00:00:01")
        front.types(">", "00:00:11")
        front.types("<", "00:00:01")
        front.types(" ", "x 0.5")
        front.types("+", "x 1 ")
        front.types("-", "x 0.5")
        front.press(b"q")
        assert front.ended() == 0, front.text


def test_what_a_model_wrote_is_never_a_sequence(recorded):
    """It is shown as signs; no byte of it commands the terminal."""
    with Screen(recorded.path.parents[1], "attach", recorded.path) as front:
        front.until(lambda: "▸g" in front.text)
        front.types(ENTER, "▌ task", "planted")
        front.types("e", "]0;owned", "[31m planted")
        front.types("y", "Copy of")
        front.press(b"t")
        front.until(lambda: "]0;owned" in copied(front))
        front.press(b"q")
        assert front.ended() == 0, front.text
    sent = front.raw.decode()
    # The shape of the pointer and the clipboard.
    assert set(re.findall(r"\x1b\](\d+)", sent)) <= {"22", "52"}
    assert not re.search(r"\x1b\[2J|[\x80-\x9f]", sent)
    assert "\x1b" not in copied(front)


def test_an_episode_that_has_said_nothing_yet_is_shown():
    """Its task, and what it waits for."""
    story = blocks(replace(talk(0), messages=talk(0).messages[:2], events=(), timings=(), spans=()))
    assert [block.who for block in story] == ["rules", "task", "T"]
