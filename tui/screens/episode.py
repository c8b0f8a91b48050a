"""Episode: one conversation while it happens or afterwards, its group, its rubric, and where its time went."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import orjson
from rich.text import Text
from textual import on
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Horizontal, Vertical

from engine.telemetry.window import Window, WindowRow
from tui.dialogs import Ask, Choice
from tui.messages import Cancel, Changed
from tui.screens.group import GroupView
from tui.snapshot import Conversation, Snapshot, SnapshotQuery
from tui.story import blocks, verdict_lines
from tui.text import duration, plain
from tui.theme import PHASE_LOOKS, reward_style
from tui.tokens import Pieces, mask_line, token_blocks
from tui.view import View
from tui.widgets.facts import Facts
from tui.widgets.line import Line
from tui.widgets.transcript import Block, Transcript


class EpisodeView(View):
    """The transcript, or the tokens, of one episode, and what is known about it."""

    HZ = 4.0
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("escape", "back", "Back"),
        Binding("n", "neighbour(1)", "Next"),
        Binding("p", "neighbour(-1)", "Previous", show=False),
        Binding("N", "sibling(1)", "Next of the group", show=False),
        Binding("P", "sibling(-1)", "Previous of the group", show=False),
        Binding("t", "tokens", "Tokens"),
        Binding("v", "group", "Compare group"),
        Binding("f", "follow", "Follow"),
        Binding("slash", "find", "Find", key_display="/"),
        Binding("e", "expand(True)", "Expand", show=False),
        Binding("x", "expand(False)", "Collapse", show=False),
        Binding("y", "copy", "Copy"),
        Binding("delete", "cancel", "Cancel episode", show=False),
    ]

    def __init__(self, id: str, window: Window) -> None:  # noqa: A002 - the name of an episode's id everywhere
        super().__init__()
        self._episode, self._window = id, window
        self._rows: Sequence[WindowRow] = ()
        self._latest: Snapshot | None = None
        self._pieces: Pieces | None = None
        self._tokens = False
        self._found = 0
        """Places that the last search found."""

    def body(self) -> ComposeResult:
        """The transcript, and the facts beside it."""
        yield Facts("episode", id="head")
        with Horizontal():
            transcript = Transcript(id="transcript")
            transcript.title = "transcript"
            yield transcript
            with Vertical(classes="side"):
                yield Facts("group", id="group")
                yield Facts("rubric", id="rubric")
                yield Facts("time", id="time")
        yield Line(placeholder="find in the transcript")

    def on_mount(self) -> None:
        """The transcript has the keys, and stays at the end while it grows."""
        transcript = self.query_one(Transcript)
        transcript.following = True
        transcript.focus()

    def question(self) -> SnapshotQuery:
        """The episode, its group, and the table it was chosen from."""
        return SnapshotQuery(window=self._window, follow=self._episode, siblings=True)

    def draw(self, snapshot: Snapshot) -> None:
        """Everything that is known of it."""
        self._rows, self._latest = snapshot.rows, snapshot
        talk = snapshot.episode
        if talk is None or talk.row.id != self._episode:
            self.query_one("#head", Facts).show([Text(f"{self._episode}: reading …")])
            return
        self.query_one("#head", Facts).show([_head(talk)])
        transcript = self.query_one(Transcript)
        transcript.foot = "following · f leaves" if transcript.following else "f follows"
        transcript.show(self._blocks(talk))
        self.query_one("#group", Facts).show([_sibling(one, self._episode) for one in snapshot.siblings])
        self.query_one("#rubric", Facts).show(_rubric(talk))
        times = self.query_one("#time", Facts)
        times.show(_times(talk, times.cells))

    def _blocks(self, talk: Conversation) -> list[Block]:
        tokenizer = self._latest.run.tokenizer if self._latest else None
        if not self._tokens or tokenizer is None:
            return blocks(talk)
        if self._pieces is None:
            self._pieces = Pieces(tokenizer)
        return token_blocks(talk, self._pieces.of(talk))

    # --- going about ------------------------------------------------------------------------------------------------

    def _go(self, id: str) -> None:  # noqa: A002 - the name of an episode's id everywhere
        self._episode = id
        self.query_one(Transcript).scroll_home(animate=False)
        self.post_message(Changed())

    def action_back(self) -> None:
        """Out of the search line, then out of the search, then to the table."""
        line, transcript = self.query_one(Line), self.query_one(Transcript)
        if line.display:
            line.close(transcript)
        elif self._found:
            self._found = transcript.find("")
        else:
            self.app.pop_screen()

    def action_neighbour(self, by: int) -> None:
        """The next hit of a search; without one the next episode of the table."""
        transcript = self.query_one(Transcript)
        if self._found:
            (transcript.next_hit if by > 0 else transcript.previous_hit)()
            return
        self._beside([row.id for row in self._rows], by)

    def action_sibling(self, by: int) -> None:
        """The next episode of the group."""
        self._beside([one.row.id for one in self._latest.siblings] if self._latest else [], by)

    def _beside(self, ids: list[str], by: int) -> None:
        place = ids.index(self._episode) + by if self._episode in ids else 0
        if 0 <= place < len(ids):
            self._go(ids[place])

    def action_tokens(self) -> None:
        """Tokens with their log-probabilities, or the conversation."""
        if self._latest is not None and self._latest.run.tokenizer is None:
            self.notify("this model has no tokenizer.json to read tokens with")
            return
        self._tokens = not self._tokens
        self._again()

    def action_group(self) -> None:
        """The episodes of the group side by side."""
        self.app.push_screen(GroupView(self._episode, self._window))

    def action_follow(self) -> None:
        """Stay at the end while it grows, or not."""
        transcript = self.query_one(Transcript)
        transcript.following = not transcript.following
        self._again()

    def action_expand(self, all: bool) -> None:  # noqa: A002, FBT001 - what an action's text can say
        """Unfold every block, or fold it."""
        self.query_one(Transcript).expand(all)

    def action_find(self) -> None:
        """Write what to look for."""
        self.query_one(Line).open()

    @on(Line.Submitted)
    def _find(self, message: Line.Submitted) -> None:
        self._found = self.query_one(Transcript).find(message.value)
        places = f"{self._found} places; n and p go through them"
        self.notify(places if self._found else f"nowhere: {message.value}", markup=False)
        self.query_one(Line).close(self.query_one(Transcript))

    def action_copy(self) -> None:
        """Ask what to copy."""
        talk = self._latest.episode if self._latest else None
        if talk is None or self._latest is None:
            return
        texts = {
            "id": talk.row.id,
            "transcript": self.query_one(Transcript).text(),
            "json": orjson.dumps({"id": talk.row.id, "messages": list(talk.messages)}, default=str).decode(),
            "show": f"synth-engine show {self._latest.run.path} {talk.row.id}",
        }

        def chosen(answer: str | None) -> None:
            if answer is not None:
                self.app.copy_to_clipboard(texts[answer])
                self.notify(f"copied the {answer}")

        choices = (
            Choice("i", "its id", "id"),
            Choice("t", "the transcript", "transcript"),
            Choice("j", "its messages as JSON", "json"),
            Choice("c", "the command that shows it", "show"),
        )
        self.app.push_screen(Ask(f"Copy of {talk.row.id}", choices), chosen)

    def action_cancel(self) -> None:
        """End this episode."""
        self.post_message(Cancel(self._episode))

    def _again(self) -> None:
        if self._latest is not None:
            self.draw(self._latest)


def _head(talk: Conversation) -> Text:
    row, look = talk.row, PHASE_LOOKS[talk.row.phase]
    turns = f"/{talk.most_turns}" if talk.most_turns else ""
    tokens = f"/{talk.most_tokens:,}" if talk.most_tokens else ""
    return Text.assemble(
        (plain(row.id), "bold"),
        f"   {plain(row.task)}   ",
        (f"{look.letter} {look.name}", look.style),
        "" if talk.stop else f" {duration(row.wait_s)}",
        f"   turn {row.turn}{turns}   {row.tokens:,}{tokens} tokens   adapter v{row.version}   ",
        (_value(row.reward), reward_style(row.reward)),
        f" {plain(row.outcome)}",
    )


def _value(reward: float | None) -> str:
    return "no reward yet" if reward is None else f"reward {reward:.2f}"


def _sibling(talk: Conversation, chosen: str) -> Text:
    row = talk.row
    bar = "█" * round(10 * (row.reward or 0.0))
    value = PHASE_LOOKS[row.phase].name if row.reward is None else f"{row.reward:.2f} {bar:<10}"
    return Text.assemble(
        "▸" if row.id == chosen else " ",
        f"{row.id.rpartition('.')[2]} ",
        (f"{value:<15}", reward_style(row.reward)),
        f" {row.turn} turns {plain(row.outcome.removeprefix('agent_'))}",
    )


def _rubric(talk: Conversation) -> list[Text]:
    lines = [Text.assemble((f"{mark} ", style), text) for mark, style, text in verdict_lines(talk)]
    if talk.reward is not None:
        parts = f"F {talk.reward.F:g}  N {talk.reward.N:.2f}  I {talk.reward.I:.2f}"
        lines.insert(0, Text(f"{talk.reward.value:.2f} = {parts}", reward_style(talk.reward.value)))
    return lines


def _times(talk: Conversation, width: int) -> list[Text]:
    """Seconds by phase, and the whole episode as one line of letters."""
    if not talk.timings or width < 1:
        return []
    took: dict[str, float] = {}
    for timing in talk.timings:
        took[timing.phase] = took.get(timing.phase, 0.0) + timing.end_s - timing.start_s
    first, last = min(t.start_s for t in talk.timings), max(t.end_s for t in talk.timings)
    cell_s = max(last - first, 1e-9) / width
    cells = ["━"] * width
    for timing in talk.timings:
        for cell in range(int((timing.start_s - first) / cell_s), int((timing.end_s - first) / cell_s) + 1):
            cells[min(cell, width - 1)] = PHASE_LOOKS[timing.phase].letter
    sums = "  ".join(f"{PHASE_LOOKS[phase].name} {duration(seconds)}" for phase, seconds in took.items())
    lines = [Text(sums), Text("".join(cells)), Text(f"one cell = {duration(cell_s)}", "dim")]
    if talk.ids:
        lines += [Text(mask_line(talk, width)), Text("█ trained  ─ given, by tokens", "dim")]
    return lines
