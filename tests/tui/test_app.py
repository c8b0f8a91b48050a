"""The dashboard, key by key, over a canned source; and nothing that a model wrote can change the screen."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import anyio
import pytest
from blockbuster import BlockBuster
from textual.events import Key
from textual.pilot import Pilot
from textual.widgets import Input

import tests.parts.pilots  # noqa: F401 - for what it does
from engine.supervise import background
from engine.telemetry.window import BINS
from tests.parts.tui_canned import HOSTILE, Canned, CannedReplay
from tests.parts.waiting import until
from tui.app import EXIT_DETACH, EXIT_LEFT, EXIT_STOP, VIEWS, Dashboard
from tui.dialogs import Ask, Leaving, Whole
from tui.screens.episode import EpisodeView
from tui.screens.group import GroupView
from tui.shot import shoot
from tui.snapshot import Snapshot, SnapshotQuery
from tui.view import View
from tui.widgets.histogram import Histogram
from tui.widgets.table import Table
from tui.widgets.transcript import Transcript

SIZES = [(200, 50), (120, 36), (80, 24)]


@pytest.fixture(autouse=True)
def _reads_its_styles(blockbuster: BlockBuster) -> None:
    """Textual reads its style sheets on its loop, which is not the engine's."""
    blockbuster.deactivate()


@asynccontextmanager
async def shown(
    source: Canned, *, size: tuple[int, int] = (120, 36), owner: bool = False, readonly: bool = False
) -> AsyncIterator[tuple[Dashboard, Pilot[int]]]:
    """The dashboard with its first picture drawn."""
    app = Dashboard(source, owner=owner, readonly=readonly)
    async with app.run_test(size=size, notifications=True) as pilot:
        await settled(app, pilot)
        yield app, pilot


async def settled(app: Dashboard, pilot: Pilot[int]) -> None:
    """Everything asked for is drawn."""
    await pilot.pause()
    await app.look()
    await pilot.pause()


async def press(app: Dashboard, pilot: Pilot[int], *names: str) -> None:
    """Press keys, one after the other, each with its picture."""
    for name in names:
        await pilot.press(name)
        await settled(app, pilot)


def text_of(app: Dashboard) -> str:
    """What stands on the screen."""
    strips = app.screen._compositor.render_strips()
    return "\n".join("".join(segment.text for segment in strip) for strip in strips)


@pytest.mark.parametrize("size", SIZES)
async def test_every_screen_is_drawn_at_every_size(size: tuple[int, int]) -> None:
    """With the run's name, its state and its step on top, and its keys below."""
    async with shown(Canned(), size=size) as (app, pilot):
        for name in VIEWS:
            await app.action_view(name)
            await settled(app, pilot)
            picture = text_of(app)
            assert "demo-1f0c2a9b" in picture
            assert "● live" in picture
            assert "step 7/50" in picture
            assert "Leave" in picture


async def test_the_numbers_are_views() -> None:
    """Wherever one is."""
    async with shown(Canned()) as (app, pilot):
        for key, words in {"2": "gradient norm", "3": "pipeline", "4": "newest first", "1": "retail/0"}.items():
            await press(app, pilot, key)
            assert words in text_of(app)
        await press(app, pilot, "enter", "3")
        assert "pipeline" in text_of(app)


async def test_the_engine_screen_says_where_the_time_goes() -> None:
    """Stages and tools with their times, what was not scored, how late the loop was, and the endpoints' batches."""
    source = Canned()
    async with shown(source, size=(160, 40)) as (app, pilot):
        await press(app, pilot, "3")
        await settled(app, pilot)
        lines = [" ".join(line.split()) for line in text_of(app).splitlines()]
        assert any("tool 80 40.0 12ms 400ms 1:01" in line for line in lines)
        assert any("get_order 1,234 5 1 12ms 400ms" in line for line in lines)
        assert any("[red]x[/]" in line for line in lines)
        assert any("not scored: 3 simulator_fault_tool" in line for line in lines)
        assert any("<2 " in line and "98%" in line and "<1%" not in line for line in lines)
        assert any("≤8" in line and "80%" in line for line in lines)
        assert source.asked[-1].stages
        assert "Open" not in lines[-1]
        app.screen.query_one("#stage").focus()
        await press(app, pilot, "j", "j", "enter")
        assert source.asked[-1].window.where == "phase=tool"
        assert not source.asked[-1].stages


async def test_the_table_asks_for_what_is_in_sight() -> None:
    """And says where it is."""
    source = Canned()
    async with shown(source) as (app, pilot):
        await press(app, pilot, "G")
        await settled(app, pilot)
        assert source.asked[-1].window.top > 300
        assert "g000099.03" in text_of(app)
        await press(app, pilot, "g")
        await settled(app, pilot)
        assert "g000000.00" in text_of(app)


async def test_filter_sort_and_groups() -> None:
    """Each key changes the question; a filter that cannot be understood leaves the picture as it is."""
    source = Canned()
    async with shown(source) as (app, pilot):
        await press(app, pilot, "slash", *"turn", "greater_than_sign", "5", "enter")
        assert source.asked[-1].window.where == "turn>5"
        assert "filter turn>5" in text_of(app)
        await press(app, pilot, "slash")
        app.screen.query_one(Input).value = "colour=red"
        await press(app, pilot, "enter")
        assert source.asked[-1].window.where == "turn>5"
        assert "no field colour" in text_of(app)
        await press(app, pilot, "escape", "escape")
        assert source.asked[-1].window.where == ""
        before = source.asked[-1].window
        await press(app, pilot, "s")
        assert source.asked[-1].window.sort != before.sort
        await press(app, pilot, "S")
        assert source.asked[-1].window.down != before.down
        await press(app, pilot, "b")
        assert source.asked[-1].window.grouped
        assert "╭" in text_of(app)
        await press(app, pilot, "f")
        assert (source.asked[-1].window.sort, source.asked[-1].window.down) == ("age", False)


async def test_a_bar_of_rewards_filters_the_table() -> None:
    """The histogram has the focus by tab, arrows choose, enter filters."""
    source = Canned()
    async with shown(source) as (app, pilot):
        histogram = app.screen.query_one(Histogram)
        histogram.focus()
        histogram.action_move(BINS - 2)
        await press(app, pilot, "right", "enter")
        assert source.asked[-1].window.where == "reward>=0.95 reward<=1"


async def test_an_episode_and_its_neighbours() -> None:
    """Enter opens it; n and p go through the table, N and P through its group; escape goes back."""
    source = Canned(ended=False)
    async with shown(source) as (app, pilot):
        await press(app, pilot, "j", "enter")
        assert isinstance(app.screen, EpisodeView)
        assert source.asked[-1].follow == "g000000.01"
        picture = text_of(app)
        assert "Which order?" in picture
        assert "running" in picture or "…tool" in picture
        assert "Looks the order up." in picture
        await press(app, pilot, "n")
        assert source.asked[-1].follow == "g000000.02"
        await press(app, pilot, "p", "P")
        assert source.asked[-1].follow == "g000000.00"
        await press(app, pilot, "N")
        assert source.asked[-1].follow == "g000000.01"
        await press(app, pilot, "escape")
        assert not isinstance(app.screen, EpisodeView)


async def test_find_fold_follow_and_copy() -> None:
    """In a transcript."""
    source = Canned()
    async with shown(source) as (app, pilot):
        await press(app, pilot, "enter")
        await press(app, pilot, "slash")
        app.screen.query_one(Input).value = "order"
        await press(app, pilot, "enter")
        assert "places" in text_of(app)
        await press(app, pilot, "e")
        assert "Follow the rules." in app.screen.query_one(Transcript).text()
        await press(app, pilot, "x", "f")
        assert not app.screen.query_one(Transcript).following
        await press(app, pilot, "y")
        assert isinstance(app.screen, Ask)
        await press(app, pilot, "i")
        assert app.clipboard == "g000000.00"


async def test_the_group_side_by_side() -> None:
    """Rewards, rubric items, and the turn at which they part."""
    async with shown(Canned()) as (app, pilot):
        await press(app, pilot, "enter", "v")
        assert isinstance(app.screen, GroupView)
        picture = text_of(app)
        assert "▸  0 " in picture
        assert "get_order" in picture
        assert "asks" in picture
        assert "1✓" in picture
        assert "1✗" in picture
        await press(app, pilot, "j", "enter")
        assert isinstance(app.screen, EpisodeView)
        assert len(app.screen_stack) == 2


async def test_tokens_need_a_tokenizer_and_say_so() -> None:
    """A scripted policy has none."""
    async with shown(Canned()) as (app, pilot):
        await press(app, pilot, "enter", "t")
        assert "no tokenizer.json" in text_of(app)


async def test_the_log_by_level_and_words() -> None:
    """Enter shows a line in full, o opens the episode that it names."""
    source = Canned()
    async with shown(source) as (app, pilot):
        await press(app, pilot, "4", "l", "l")
        assert "slow" in text_of(app)
        assert "phase=training" not in text_of(app)
        await press(app, pilot, "enter")
        assert isinstance(app.screen, Whole)
        await press(app, pilot, "escape", "slash")
        app.screen.query_one(Input).value = "nothing"
        await press(app, pilot, "enter")
        assert "0 lines" in text_of(app)
        await press(app, pilot, "slash")
        app.screen.query_one(Input).value = ""
        await press(app, pilot, "enter", "o")
        assert source.asked[-1].follow == "g000003.01"


async def goes_round(app: Dashboard, pilot: Pilot[int]) -> None:
    """The loop that asks for pictures comes by some times, so that everything is asked that is to be asked."""
    for _ in range(4):
        await pilot.pause()
        soon = app._soon
        soon.set()
        await until(lambda soon=soon: app._soon is not soon)


@pytest.fixture
def _only_when_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    """No picture comes of its own accord."""
    monkeypatch.setattr(View, "HZ", 1e-6)


@pytest.mark.usefixtures("_only_when_asked")
async def test_freeze_holds_the_picture() -> None:
    """The engine runs on; the picture says that it is held, by which nothing moves that would have to be asked for."""
    source = Canned()
    async with shown(source) as (app, pilot):
        await goes_round(app, pilot)
        table = app.screen.query_one(Table)
        asked, size = len(source.asked), table.size
        await pilot.press("space")
        await goes_round(app, pilot)
        assert "● live   frozen: space goes on   step 7/50" in text_of(app)
        assert table.size == size
        assert len(source.asked) == asked
        await pilot.press("space")
        await until(lambda: len(source.asked) > asked)
        await pilot.pause()
        assert "frozen" not in text_of(app)


class Late(Canned):
    """Its answers come when the test says so, once `wait` is an event."""

    wait: anyio.Event | None = None

    async def look(self, question: SnapshotQuery) -> Snapshot:
        """As a source does, late."""
        answer = await super().look(question)
        if self.wait is not None:
            await self.wait.wait()
        return answer


@pytest.mark.usefixtures("_only_when_asked")
async def test_an_answer_that_comes_after_the_freeze_is_not_shown() -> None:
    """The picture that one saw is held; what a key asks for is shown, and held then."""
    source = Late()
    async with shown(source) as (app, pilot):
        await goes_round(app, pilot)
        source.wait, asked = anyio.Event(), len(source.asked)
        source.note = "another picture"
        app._soon.set()
        await until(lambda: len(source.asked) > asked)
        await pilot.press("space")
        source.wait.set()
        await goes_round(app, pilot)
        assert "another picture" not in text_of(app)
        await pilot.press("s")
        await until(lambda: "another picture" in text_of(app))
        assert "frozen" in text_of(app)


async def test_the_owner_is_asked_what_becomes_of_the_run() -> None:
    """Detach, stop, or stay."""
    for keys, code in {("q", "d"): EXIT_DETACH, ("q", "s"): EXIT_STOP, ("ctrl+c", "ctrl+c"): EXIT_STOP}.items():
        async with shown(Canned(), owner=True) as (app, pilot):
            await pilot.press(keys[0])
            await pilot.pause()
            assert isinstance(app.screen, Leaving)
            await pilot.press(keys[1])
            await pilot.pause()
        assert app.return_value == code


async def test_an_answer_in_one_burst_with_its_question() -> None:
    """Over a slow line both keys arrive together, before the question is there; others do not answer it."""
    for keys, code in {"qd": EXIT_DETACH, "qs": EXIT_STOP, "qjd": EXIT_DETACH}.items():
        async with shown(Canned(), owner=True) as (app, _):
            for key in keys:
                app.post_message(Key(key, key))
            await until(lambda app=app: app.return_value is not None)
        assert app.return_value == code


async def test_staying_stays() -> None:
    """Escape closes the question."""
    async with shown(Canned(), owner=True) as (app, pilot):
        await press(app, pilot, "q", "escape", "j")
        assert not isinstance(app.screen, Leaving)
        assert app.return_value is None


@pytest.mark.parametrize(("state", "owner"), [("ended", True), ("lost", True), ("live", False)])
async def test_others_just_leave(state: str, owner: bool) -> None:
    """A viewer, and the owner of a run that is over."""
    async with shown(Canned(state=state), owner=owner) as (app, pilot):  # type: ignore[arg-type]
        await pilot.press("q")
        await pilot.pause()
    assert app.return_value == EXIT_LEFT


async def test_stop_and_cancel_ask_first() -> None:
    """And do nothing with --readonly."""
    source = Canned()
    async with shown(source) as (app, pilot):
        await press(app, pilot, "x")
        assert isinstance(app.screen, Ask)
        await press(app, pilot, "c")
        assert source.cancelled == ["g000000.00"]
        await press(app, pilot, "ctrl+x")
        assert isinstance(app.screen, Ask)
        await pilot.press("s")
        await pilot.pause()
    assert app.return_value == EXIT_STOP
    source = Canned()
    async with shown(source, readonly=True) as (app, pilot):
        await press(app, pilot, "x", "ctrl+x")
        assert not isinstance(app.screen, Ask)
        assert source.cancelled == []
        assert "--readonly" in text_of(app)


async def test_a_replay_is_scrubbed() -> None:
    """Its clock stands on the screen, moves by keys, stops and goes faster."""
    source = CannedReplay()
    async with shown(source) as (app, pilot):
        assert "00:01:40" in text_of(app)
        assert "x 1" in text_of(app)
        await press(app, pilot, "full_stop")
        assert source.clock_s == 101.0
        await press(app, pilot, "less_than_sign")
        assert source.clock_s == 91.0
        await press(app, pilot, "plus", "plus")
        assert source.speed == 5.0
        await press(app, pilot, "space")
        assert source.speed == 0.0
        assert "held" in text_of(app)
        await press(app, pilot, "space")
        assert source.speed == 5.0


async def test_the_palette_has_every_key() -> None:
    """Whoever does not know the keys finds them by their words."""
    async with shown(Canned()) as (app, _):
        known = {active.binding.description for active in app.screen.active_bindings.values()}
    assert {
        "Filter",
        "Sort",
        "Groups",
        "Freeze",
        "Leave",
        "Rollouts",
        "Learner",
        "Engine",
        "Log",
        "Stop the run",
    } <= known


async def test_it_can_be_made_small_and_large_again() -> None:
    """80 x 24 keeps the table; the charts come back."""
    async with shown(Canned(), size=(200, 50)) as (app, pilot):
        assert "sampled tokens/s" in text_of(app)
        await pilot.resize_terminal(80, 24)
        await settled(app, pilot)
        assert "g000000.00" in text_of(app)
        assert "sampled tokens/s" not in text_of(app)
        await pilot.resize_terminal(200, 50)
        await settled(app, pilot)
        assert "sampled tokens/s" in text_of(app)


async def test_what_models_write_is_shown_literally() -> None:
    """On every screen: no escape, no markup, no control reaches the terminal."""
    source = Canned(text=HOSTILE, note=HOSTILE)
    source.rows = [one._replace(task=HOSTILE, outcome=HOSTILE) for one in source.rows]
    async with shown(source, size=(130, 36)) as (app, pilot):
        for keys in (("1",), ("2",), ("3",), ("4",), ("4", "enter"), ("escape", "1", "enter"), ("v",)):
            await press(app, pilot, *keys)
            picture = text_of(app)
            assert not {char for char in picture if char in "\x1b\x07\u202e\u2066\ud800"}
            if keys in (("1",), ("4",)):
                assert "[red]x[/]" in picture


async def test_a_picture_without_a_terminal(tmp_path: Path) -> None:
    """As README's are made."""
    for name in ("learner", "g000000.01"):
        file = tmp_path / f"{name}.svg"
        source = Canned()
        await shoot(source, file, name, (120, 36))
        assert file.read_text().startswith("<svg")
        assert "demo-1f0c2a9b" in file.read_text()
        assert source.closed


async def test_the_table_keeps_the_focus() -> None:
    """Also when one comes back from a view."""
    async with shown(Canned()) as (app, pilot):
        await press(app, pilot, "2", "1")
        assert isinstance(app.focused, Table)


def test_exit_codes_are_those_that_its_starter_reads() -> None:
    """Two processes, of which neither imports the other."""
    assert (EXIT_LEFT, EXIT_DETACH, EXIT_STOP) == (background.LEFT, background.DETACH, background.STOP)
