"""Rollouts: how many episodes there are, what each waits for and since when, and whether the reward moves."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import pairwise
from typing import ClassVar

from rich.text import Text
from textual import on
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Horizontal, Vertical

from engine.errors import ConfigError
from engine.telemetry import engine_metrics as keys
from engine.telemetry.window import WINDOW_FIELDS, Window, WindowRow, conditions
from tui.messages import Cancel, Changed, Open
from tui.numbers import live, newest_row, rate, rates, series, staleness_shares, untrained
from tui.snapshot import Snapshot, SnapshotQuery
from tui.text import count, duration, plain, since, took
from tui.theme import PHASE_LOOKS, reward_style
from tui.view import View
from tui.widgets.chart import Bars, Chart
from tui.widgets.histogram import Histogram
from tui.widgets.line import Line
from tui.widgets.lines import Cell
from tui.widgets.phasebar import PhaseBar
from tui.widgets.table import Column, Table, brace
from tui.widgets.tiles import Tiles

_COLUMNS = (
    Column("id", "episode", 14, 0, right=False),
    Column("brace", "", 1, 3, right=False),
    Column("task", "task", 0, 1, right=False),
    Column("phase", "phase", 9, 0, right=False),
    Column("wait", "wait", 7, 2, right=True),
    Column("turn", "turn", 4, 4, right=True),
    Column("tokens", "tokens", 7, 5, right=True),
    Column("age", "age", 7, 3, right=True),
    Column("version", "v", 4, 6, right=True),
    Column("reward", "reward", 6, 0, right=True),
    Column("outcome", "outcome", 21, 7, right=False),
)
_SORTS = tuple(name for name in WINDOW_FIELDS if name not in ("id", "group"))


class RolloutsView(View):
    """The table of episodes, between what they add up to."""

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("slash", "filter", "Filter", key_display="/"),
        Binding("s", "sort", "Sort"),
        Binding("S", "reverse", "Reverse", show=False),
        Binding("b", "groups", "Groups"),
        Binding("f", "newest", "Newest first", show=False),
        Binding("y", "copy", "Copy id", show=False),
        Binding("x", "cancel", "Cancel episode", show=False),
    ]

    def __init__(self) -> None:
        super().__init__()
        self._window = Window(rows=60)

    def body(self) -> ComposeResult:
        """Tiles, phases, the table and the charts beside it."""
        yield Tiles()
        yield PhaseBar()
        with Horizontal():
            table = Table(_COLUMNS, id="episodes")
            table.title = "episodes"
            yield table
            with Vertical(classes="side"):
                yield Chart("reward", id="reward")
                yield Chart("sampled tokens/s", id="tokens")
                yield Bars("staleness at training", id="staleness")
                yield Histogram("newest rewards", id="rewards")
        yield Line(placeholder="phase=tool turn>5 task~retail reward<1")

    def on_mount(self) -> None:
        """The table has the keys."""
        self.query_one(Table).focus()

    def question(self) -> SnapshotQuery:
        """The lines in sight."""
        return SnapshotQuery(window=self._window)

    def draw(self, snapshot: Snapshot) -> None:
        """Everything."""
        shares = staleness_shares(snapshot.learner[-1]) if snapshot.learner else {}
        self.query_one(Tiles).show(_tiles(snapshot, shares))
        self.query_one(PhaseBar).show(snapshot.phases)
        table = self.query_one("#episodes", Table)
        rows = snapshot.rows
        cells = _cells(rows, snapshot.clock_s)
        table.show(cells, top=snapshot.window.top, total=snapshot.total, ids=[row.id for row in rows])
        table.sorted_by = None if self._window.grouped else (self._window.sort, self._window.down)
        table.foot = _foot(self._window, snapshot.total)
        self.query_one("#reward", Chart).show(series(snapshot.engine, keys.RUN_S, keys.REWARD_MEAN))
        self.query_one("#tokens", Chart).show(rates(snapshot.engine, keys.TOKENS_SAMPLED))
        bars = [(f"{number}", share, f"{share:.0%}") for number, share in shares.items()]
        self.query_one("#staleness", Bars).show(bars)
        self.query_one("#rewards", Histogram).show(snapshot.rewards)

    # --- what is in sight -------------------------------------------------------------------------------------------

    def _look_at(self, window: Window) -> None:
        if window != self._window:
            self._window = window
            self.post_message(Changed())

    @on(Table.Looked)
    def _scrolled(self, message: Table.Looked) -> None:
        self._look_at(replace(self._window, top=message.top, rows=message.rows))

    @on(Table.Opened)
    def _open(self, message: Table.Opened) -> None:
        self.post_message(Open(message.id, self._window))

    @on(Histogram.Picked)
    def _of_reward(self, message: Histogram.Picked) -> None:
        words = f"reward>={message.low:g} reward<" + ("=1" if message.high >= 1 else f"{message.high:g}")
        self.filter(words)

    def action_filter(self) -> None:
        """Write a filter; escape leaves it, an empty one shows everything."""
        self.query_one(Line).open(self._window.where)

    @on(Line.Submitted)
    def _submitted(self, message: Line.Submitted) -> None:
        self.filter(message.value)

    def filter(self, where: str) -> None:
        """Show what passes this; a filter that cannot be understood is told."""
        try:
            conditions(where)
        except ConfigError as error:
            self.notify(str(error), severity="warning", markup=False)
            return
        self.query_one(Line).close(self.query_one(Table))
        self._look_at(replace(self._window, where=where.strip(), top=0))

    def key_escape(self) -> None:
        """Leave the filter line; in the table, show everything again."""
        line = self.query_one(Line)
        if line.display:
            line.close(self.query_one(Table))
        else:
            self._look_at(replace(self._window, where="", top=0))

    def action_sort(self) -> None:
        """By the next column."""
        place = (_SORTS.index(self._window.sort) + 1) % len(_SORTS)
        self._look_at(replace(self._window, sort=_SORTS[place], grouped=False, top=0))

    def action_reverse(self) -> None:
        """The other way round."""
        self._look_at(replace(self._window, down=not self._window.down))

    def action_groups(self) -> None:
        """Members of a group together, or not."""
        self._look_at(replace(self._window, grouped=not self._window.grouped, top=0))

    def action_newest(self) -> None:
        """The newest first, from the top."""
        self._look_at(replace(self._window, sort="age", down=False, grouped=False, top=0))

    def action_copy(self) -> None:
        """The id under the cursor."""
        if (chosen := self.query_one(Table).cursor_id) is not None:
            self.app.copy_to_clipboard(chosen)
            self.notify(f"copied {chosen}", markup=False)

    def action_cancel(self) -> None:
        """End the episode under the cursor."""
        if (chosen := self.query_one(Table).cursor_id) is not None:
            self.post_message(Cancel(chosen))


def _tiles(snapshot: Snapshot, shares: Mapping[int, float]) -> list[tuple[str, str, str]]:
    row, rows = newest_row(snapshot), snapshot.engine
    mean = sum(number * share for number, share in shares.items())
    parts = f"F {row.get(keys.F_MEAN, 0):.2f} N {row.get(keys.N_MEAN, 0):.2f} I {row.get(keys.I_MEAN, 0):.2f}"
    prompts, p99 = rate(rows, keys.PROMPT_TOKENS), keys.STAGES["policy"].p99_s
    cached = f", {rate(rows, keys.CACHED_TOKENS) / prompts:.0%} cached" if prompts else ""
    policy = f", p99 {took(row[p99])}" if row.get(p99) else ""
    evaluating, slots = row.get(keys.EVAL_LIVE, 0), row.get(keys.LIVE_SLOTS, snapshot.run.live_most)
    return [
        ("live", f"{live(snapshot):,}/{slots:,.0f}", f"{evaluating:.0f} evaluating"),
        (
            "turns/s",
            f"{rate(rows, keys.TURNS_FINISHED):,.0f}",
            f"{rate(rows, keys.EPISODES_FINISHED):,.1f} episodes/s{policy}",
        ),
        (
            "tokens/s",
            count(rate(rows, keys.TOKENS_SAMPLED)),
            f"{row.get(keys.POLICY_QUEUE, 0):.0f} waiting{cached}",
        ),
        ("reward", f"{row.get(keys.REWARD_MEAN, 0):.3f}", parts),
        ("staleness", f"{mean:.1f}", f"most {max(shares, default=0)} of {snapshot.run.max_staleness}"),
        ("queue", f"{untrained(row)} groups", f"{row.get(keys.GROUPS_DROPPED, 0):.0f} dropped"),
    ]


def _foot(window: Window, total: int) -> str:
    order = "by group" if window.grouped else f"sort {window.sort} {'↓' if window.down else '↑'}"
    chosen = f" · filter {plain(window.where)}" if window.where else ""
    return f"{total:,} · {order}{chosen}"


def _cells(rows: Sequence[WindowRow], now_s: float) -> list[list[Cell]]:
    """The cells of lines one below the other: members of a group that stand together are bracketed."""
    same = [False, *(one.group == other.group for one, other in pairwise(rows)), False]
    return [_line(row, brace(above, below), now_s) for row, (above, below) in zip(rows, pairwise(same), strict=False)]


def _line(row: WindowRow, bracket: str, now_s: float) -> list[Cell]:
    look, done = PHASE_LOOKS[row.phase], row.phase == "done"
    reward = "—" if row.reward is None else f"{row.reward:.2f}"
    return [
        plain(row.id),
        bracket,
        plain(row.task),
        Text(f"{look.letter} {look.name}", look.style),
        "" if done else since(row.wait_s, now_s),
        f"{row.turn}",
        f"{row.tokens:,}",
        duration(row.age_s) if done else since(row.age_s, now_s),
        f"{row.version}",
        Text(reward, reward_style(row.reward)),
        plain(row.outcome),
    ]
