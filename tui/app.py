"""The dashboard: asks its source for a snapshot at each tick, and lets the screen in front draw it."""

from __future__ import annotations

import asyncio
import signal
import time
from collections.abc import Callable, Sequence
from typing import Any, ClassVar

import anyio
from textual.app import App
from textual.binding import Binding, BindingType
from textual.events import Key
from textual.screen import Screen

from engine.errors import ConfigError
from tui.dialogs import Ask, Choice, Leaving
from tui.messages import Cancel, Filtered, Open
from tui.palette import Keys
from tui.screens.rollouts import RolloutsView
from tui.scrub import scrub_line
from tui.snapshot import Replay, Snapshot, SnapshotSource
from tui.view import View

EXIT_LEFT, EXIT_ERROR, EXIT_DETACH, EXIT_STOP = 0, 1, 10, 11
"""What became of it: left, failed, the run's owner detached, the run is to be stopped."""

_PACES = (0.25, 0.5, 1.0, 2.0)
"""What `+` and `-` multiply the screen's own rate of snapshots by."""
_BLURRED_HZ = 0.5
_BUSY_SHARE = 0.25
"""Of a core: what takes more slows itself down, and says so."""
_IN_A_ROW, _MOST_HALVINGS = 6, 3
"""Pictures that cost too much, or little, until the rate follows; the first of a screen always costs more."""
_SPEEDS = (0.5, 1.0, 2.0, 5.0, 10.0, 20.0, 50.0, 100.0)
"""Of a replay."""


# The first picture is drawn without the screens that somebody may go to.
def _learner() -> View:
    from tui.screens.learner import LearnerView  # noqa: PLC0415

    return LearnerView()


def _engine() -> View:
    from tui.screens.engine import EngineView  # noqa: PLC0415

    return EngineView()


def _log() -> View:
    from tui.screens.log import LogView  # noqa: PLC0415

    return LogView()


def _episode(message: Open) -> View:
    from tui.screens.episode import EpisodeView  # noqa: PLC0415

    return EpisodeView(message.id, message.window)


VIEWS: dict[str, Callable[[], Screen[Any]]] = {
    "rollouts": RolloutsView,
    "learner": _learner,
    "engine": _engine,
    "log": _log,
}


class Dashboard(App[int]):
    """All screens over one source.

    `owner`: it stands in front of the run's own supervisor, so leaving asks what is to become of the run. `readonly`:
    it can neither cancel an episode nor stop the run."""

    SCREENS: ClassVar = VIEWS
    CSS_PATH = "dashboard.tcss"
    COMMANDS: ClassVar = App.COMMANDS | {Keys}
    ENABLE_COMMAND_PALETTE = True
    NOTIFICATION_TIMEOUT = 2.5
    BINDINGS: ClassVar[list[BindingType]] = [
        *(Binding(str(n), f"view('{name}')", name.capitalize(), show=False) for n, name in enumerate(VIEWS, 1)),
        Binding("space", "freeze", "Freeze"),
        Binding("plus", "pace(1)", "Faster", show=False),
        Binding("minus", "pace(-1)", "Slower", show=False),
        Binding("comma", "step(-1)", "Replay: back 1 s", show=False),
        Binding("full_stop", "step(1)", "Replay: on 1 s", show=False),
        Binding("less_than_sign", "step(-10)", "Replay: back 10 s", show=False),
        Binding("greater_than_sign", "step(10)", "Replay: on 10 s", show=False),
        Binding("m", "maximize", "Maximize", show=False),
        Binding("question_mark", "keys", "Keys", key_display="?"),
        Binding("ctrl+x", "stop_run", "Stop the run", show=False),
        Binding("q", "leave", "Leave"),
        Binding("ctrl+c", "leave", "Leave", show=False, priority=True),
    ]

    def __init__(self, source: SnapshotSource | Replay, *, owner: bool = False, readonly: bool = False) -> None:
        super().__init__()
        self.source: SnapshotSource = source
        self._replay = source if isinstance(source, Replay) else None
        self.animation_level = "none"
        self._owner, self._readonly = owner, readonly
        self._snapshot: Snapshot | None = None
        self._frozen, self._blurred = False, False
        self._pace = 1.0
        self._speed = (self._replay and self._replay.speed) or 1.0
        self._busy, self._dear = 0, 0
        self._soon, self._asked = anyio.Event(), False
        self._complaint = ""

    def get_default_screen(self) -> Screen[Any]:
        """Begin with the rollouts, below all else."""
        return self.get_screen("rollouts")

    def on_mount(self) -> None:
        """Look, until it is left."""
        for number in (signal.SIGTERM, signal.SIGHUP):
            # Whoever started it is gone, or the terminal is: leave that as it was found.
            asyncio.get_running_loop().add_signal_handler(number, self.exit, EXIT_LEFT)
        # Of the app: textual cancels it when that ends, and ends the app if it fails.
        self.run_worker(self._look_for_ever(), exclusive=True)

    # --- snapshots ------------------------------------------------------------------------------------------------

    async def _look_for_ever(self) -> None:
        while True:
            # Of this thread: files are read in others.
            began_s, cpu_s = time.monotonic(), time.thread_time()
            # Before the look: what is asked meanwhile is looked at next.
            asked, self._asked, self._soon = self._asked, False, anyio.Event()
            if asked or not self._frozen:
                await self.look(asked=asked)
            period_s = 1.0 / self._hz()
            with anyio.move_on_after(max(0.02, began_s + period_s - time.monotonic())):
                await self._soon.wait()
            self._slow_down((time.thread_time() - cpu_s) / max(1e-3, time.monotonic() - began_s))

    async def look(self, *, asked: bool = True) -> Snapshot | None:
        """Asks once, and draws; returns what there is to draw.

        Where nobody `asked` for it and the picture was frozen before the answer came, the picture stays."""
        view = self._view()
        if view is None:
            return None
        question = view.question()
        try:
            seen = await self.source.look(question)
            if self._frozen and not asked:
                return self._snapshot
            self._snapshot, self._complaint = seen, ""
        except ConfigError as error:
            # A filter that cannot be understood: the picture stays as it was.
            self._complaint = str(error)
        self._show()
        return self._snapshot

    def _show(self) -> None:
        view = self._view()
        if view is None or self._snapshot is None:
            return
        notes = (
            scrub_line(self._snapshot, self._replay.speed) if self._replay and self._replays() else "",
            self._complaint,
            self._snapshot.note,
        )
        # Not a note: a line more would leave the table a line less, which it would ask for at once.
        pace = f"slowed to {self._hz():.2g} pictures a second" if self._busy else ""
        view.show(self._snapshot, tuple(filter(None, notes)), "frozen: space goes on" if self._frozen else pace)

    def _view(self) -> View | None:
        """The screen in front, below any dialog."""
        return next((screen for screen in reversed(self.screen_stack) if isinstance(screen, View)), None)

    def _hz(self) -> float:
        view = self._view()
        wanted = (view.HZ if view else View.HZ) * self._pace / float(1 << self._busy)
        return min(wanted, _BLURRED_HZ) if self._blurred else wanted

    def _slow_down(self, share: float) -> None:
        """Halve the rate where it costs too much; win it back where it costs little."""
        self._dear = min(max(self._dear + (1 if share > _BUSY_SHARE else -1), -_IN_A_ROW), _IN_A_ROW)
        if self._dear == _IN_A_ROW and self._busy < _MOST_HALVINGS:
            self._busy, self._dear = self._busy + 1, 0
        elif self._dear == -_IN_A_ROW and self._busy:
            self._busy, self._dear = self._busy - 1, 0

    def on_changed(self) -> None:
        """A screen asks for something else: look at once, and once if the picture is frozen."""
        self._asked = True
        self._soon.set()

    def on_app_blur(self) -> None:
        """Nobody looks."""
        self._blurred = True

    def on_app_focus(self) -> None:
        """Somebody looks again."""
        self._blurred = False
        self._soon.set()

    # --- going about ------------------------------------------------------------------------------------------------

    async def action_view(self, name: str) -> None:
        """Show one of the four views."""
        wanted = self.get_screen(name)
        while self.screen is not wanted and len(self.screen_stack) > 1:
            await self.pop_screen()
        if self.screen is not wanted:
            await self.push_screen(name)
        self._show()
        self._soon.set()

    async def on_open(self, message: Open) -> None:
        """Show an episode."""
        await self.push_screen(_episode(message))

    async def on_filtered(self, message: Filtered) -> None:
        """Show some of the episodes."""
        await self.action_view("rollouts")
        self.get_screen("rollouts", RolloutsView).filter(message.where)

    def action_freeze(self) -> None:
        """Hold the picture; a replay holds its clock."""
        if self._replay is not None:
            self._replay.speed = 0.0 if self._replay.speed else self._speed
        else:
            self._frozen = not self._frozen
            self._show()
        self._soon.set()

    def action_pace(self, by: int) -> None:
        """More or fewer pictures a second; a replay runs faster or slower."""
        if self._replay is not None:
            self._speed = _beside(_SPEEDS, self._speed, by)
            self._replay.speed = self._speed
        else:
            self._pace = _beside(_PACES, self._pace, by)
        self._soon.set()

    def action_step(self, seconds: float) -> None:
        """Move the clock of a replay."""
        if self._replay is not None and self._snapshot is not None:
            self._replay.seek(self._snapshot.clock_s + seconds)
            self._soon.set()

    def action_maximize(self) -> None:
        """Let the pane that has the keys fill the screen, or not any more."""
        if self.screen.maximized is not None:
            self.screen.minimize()
        elif self.screen.focused is not None:
            self.screen.maximize(self.screen.focused)

    def action_keys(self) -> None:
        """Show or hide the keys."""
        if self.screen.query("HelpPanel"):
            self.action_hide_help_panel()
        else:
            self.action_show_help_panel()

    # --- the run ----------------------------------------------------------------------------------------------------

    def action_leave(self) -> None:
        """Leave; the owner says what is to become of the run."""
        if isinstance(self.screen, Leaving):
            self._left("stop")
        elif self._owner and self._runs():
            self.push_screen(Leaving(), self._left)
        else:
            self.exit(EXIT_LEFT)

    def on_key(self, event: Key) -> None:
        """Keys come in bursts over a slow line: one that went to what was in front before a dialog is the dialog's."""
        if isinstance(self.screen, Ask):
            self.screen.answer(event.key)

    async def action_quit(self) -> None:
        """What Textual calls leaving, by Ctrl-Q and in the palette."""
        self.action_leave()

    def _left(self, choice: str | None) -> None:
        if choice is not None:
            self.exit(EXIT_STOP if choice == "stop" else EXIT_DETACH)

    def action_stop_run(self) -> None:
        """Ask, then leave so that the run is stopped."""
        if self._readonly or not self._runs():
            self.notify("there is nothing to stop" if not self._runs() else "--readonly: the run cannot be stopped")
            return
        stop = Choice("s", "stop: what is in flight is drained and saved", "stop")
        self.push_screen(Ask("Stop the run?", (stop,)), self._left)

    def on_cancel(self, message: Cancel) -> None:
        """Ask, then cancel an episode."""
        if self._readonly or not self._runs():
            self.notify("no engine is running" if not self._runs() else "--readonly: no episode can be cancelled")
            return
        choice = Choice("c", "cancel it: it ends without a reward, and is not trained on", message.id)

        async def cancel() -> None:
            self.notify(await self.source.cancel(message.id), markup=False)

        def chosen(answer: str | None) -> None:
            if answer is not None:
                self.run_worker(cancel())

        self.push_screen(Ask(f"Cancel episode {message.id}?", (choice,)), chosen)

    def _replays(self) -> bool:
        return self._snapshot is not None and self._snapshot.state == "replay"

    def _runs(self) -> bool:
        return self._snapshot is None or self._snapshot.state in ("starting", "live")


def _beside(choices: Sequence[float], now: float, by: int) -> float:
    """The choice that lies `by` places beside the one nearest to `now`."""
    place = min(range(len(choices)), key=lambda index: abs(choices[index] - now))
    return choices[min(max(place + by, 0), len(choices) - 1)]
