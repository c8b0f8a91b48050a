"""Questions over a screen: leaving, copying, confirming; and one value in full."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar, NamedTuple

from rich.text import Text
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Vertical, VerticalScroll
from textual.events import Key
from textual.screen import ModalScreen
from textual.widgets import Static

from tui.text import plain


class Choice(NamedTuple):
    """One answer: the key that gives it, its words, and what is returned."""

    key: str
    words: str
    value: str


class Ask(ModalScreen[str | None]):
    """A question with single-key answers; escape gives None."""

    def __init__(self, question: str, choices: Sequence[Choice]) -> None:
        super().__init__()
        self._question, self._choices = question, tuple(choices)

    def compose(self) -> ComposeResult:
        """The question, and a line for each answer."""
        lines = [Text(plain(self._question), "bold"), Text("")]
        lines += (Text.assemble((f" {one.key} ", "reverse"), f"  {plain(one.words)}") for one in self._choices)
        lines.append(Text.assemble((" esc ", "reverse"), "  back"))
        with Vertical(classes="dialog"):
            yield Static(Text("\n").join(lines))

    def on_key(self, event: Key) -> None:
        """One of the answers; everything else waits."""
        event.stop()
        self.answer(event.key)

    def answer(self, key: str) -> None:
        """Take this key for an answer, if it is one."""
        if not self.is_current:
            # Two keys at once: the first has answered.
            return
        if key == "escape":
            self.dismiss(None)
            return
        for choice in self._choices:
            if key == choice.key:
                self.dismiss(choice.value)
                return


class Leaving(Ask):
    """What is to become of the run; Ctrl-C once more stops it."""

    def __init__(self) -> None:
        super().__init__(
            "Leave the dashboard",
            (
                Choice("d", "detach: the run goes on, `synth-engine attach` shows it again", "detach"),
                Choice("s", "stop the run: it drains and saves, `synth-engine run --resume` goes on", "stop"),
                Choice("ctrl+c", "stop the run", "stop"),
            ),
        )


class Whole(ModalScreen[None]):
    """A text in full."""

    BINDINGS: ClassVar[list[BindingType]] = [Binding("escape,enter,q", "dismiss", "Back")]

    def __init__(self, lines: Sequence[str]) -> None:
        super().__init__()
        self._lines = lines

    def compose(self) -> ComposeResult:
        """All of it, to scroll in."""
        with VerticalScroll(classes="dialog"):
            yield Static(Text("\n".join(self._lines)))
