"""A run without a terminal: its supervisor as a process of its own that any command finds, a dashboard in front.

::

    terminal ── synth-engine run ──┬── python -m tui RUN --owner            in front; it may go, crash or be killed
                                   └── synth-engine run --resume RUN --plain    a session of its own: no hang-up, no
                                         │                                      Ctrl-C reaches it; RUN/supervisor.log
                                         └── servers, learner, engine

The dashboard's exit code is what the user chose there. A stop is SIGTERM to the process that processes.json names.
"""

from __future__ import annotations

import signal
import subprocess
import sys
import termios
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from types import FrameType

import click
import psutil

from engine.config.environment import child_environment, environment
from engine.errors import RunError
from engine.processes import alive
from engine.processes.child import PYTHON, Child, Command, leash
from engine.rundir.layout import RunDir, read_json
from engine.supervise.supervisor import DRAINING, SIGNALLED, Ending, SupervisorPhase, SupervisorStatus, exit_name

DASHBOARD = "tui"
"""The module that is started as the dashboard; the engine never imports it."""
LEFT, DETACH, STOP = 0, 10, 11
"""Its exit codes: the run had ended or a viewer left; the run is to go on; the run is to stop."""
_TICK_S = 0.1
_INTERRUPTED = (-signal.SIGINT, SIGNALLED + signal.SIGINT)
_LEAVE = "\x1b[?1049l\x1b[?25h\x1b[?1000l\x1b[?1003l\x1b[?1006l\x1b[?1004l\x1b[?2004l\x1b[0m\n"
"""Undoes what a killed dashboard could not: other screen, hidden cursor, mouse, focus, paste, colours."""


def on_terminal() -> bool:
    """Whether a dashboard can be shown: it reads stdin, draws on stderr and takes its size from stdout."""
    return environment("TERM") != "dumb" and all(
        stream is not None and stream.isatty() for stream in (sys.stdin, sys.stdout, sys.stderr)
    )


@contextmanager
def dashboard(*arguments: str) -> Iterator[subprocess.Popen[bytes]]:
    """The dashboard in front; afterwards the terminal is as it was, however it ended."""
    before = termios.tcgetattr(sys.stdin)
    argv = (*PYTHON, "-m", DASHBOARD, *arguments)
    # Safe here: these commands have one thread. Without the leash it would fight the shell for the terminal.
    process = subprocess.Popen(argv, env=child_environment(), preexec_fn=leash)  # noqa: PLW1509
    try:
        yield process
    finally:
        code = process.wait()
        with suppress(termios.error):
            termios.tcsetattr(sys.stdin, termios.TCSADRAIN, before)
        if code < 0:
            click.echo(_LEAVE, nl=False)


def show_dashboard(*arguments: str) -> bool:
    """Show the dashboard to a viewer; whether they chose to stop the run.

    Raises RunError if it ended in any other way than being left."""
    with dashboard(*arguments) as front:
        code = front.wait()
    if code not in (LEFT, STOP):
        raise RunError(_crashed(code))
    return code == STOP


def _crashed(code: int) -> str:
    return f"the dashboard ended ({exit_name(code)}); what it said stands above"


def supervisor_of(run: RunDir) -> psutil.Process | None:
    """The process that supervises `run` now; None also when its end is recorded and it only concludes."""
    recorded = read_json(run.processes)
    if recorded is None or recorded.get("ending") or "supervisor_started" not in recorded:
        return None
    return alive.found(recorded["supervisor"], recorded["supervisor_started"])


def ask_to_stop(run: RunDir) -> psutil.Process | None:
    """SIGTERM to the supervisor of `run`: once it drains, twice it stops at once; None if none is at work."""
    process = supervisor_of(run)
    if process is not None:
        with suppress(psutil.NoSuchProcess):
            process.send_signal(signal.SIGTERM)
    return process


def ending_of(run: RunDir, pid: int) -> Ending | None:
    """How the run ended under supervisor `pid`, as it recorded it."""
    recorded = read_json(run.processes) or {}
    if recorded.get("supervisor") != pid or not recorded.get("ending"):
        return None
    return Ending(**recorded["ending"])


class Background:
    """Supervises a run from a process that needs no terminal, with the dashboard in front; `run` is the only entry."""

    def __init__(self, run: RunDir, on_tick: Callable[[SupervisorStatus], None]) -> None:
        self.run_directory, self.on_tick = run, on_tick
        argv = (*PYTHON, "-m", "engine.cli", "run", "--resume", str(run.path), "--plain", "--trust")
        # Whoever starts this has opened the run, or made it.
        log = run.path / "supervisor.log"
        self.supervisor = Child(Command(name="supervisor", argv=argv, log=log, environment=child_environment()))
        self._front: subprocess.Popen[bytes] | None = None
        self._asked: list[signal.Signals] = []

    def run(self) -> Ending | None:
        """How the run ended; None if it goes on without this terminal."""
        with self._noting_signals():
            self.supervisor.start(None)
            pid = self.supervisor.pid
            assert pid is not None
            # One that cannot begin says so here, as if it had the terminal: no dashboard flashes up.
            while not (self._asked or self._ended() or supervisor_of(self.run_directory)):
                self._tick(SupervisorPhase.STARTING)
            begun = supervisor_of(self.run_directory) is not None
            if not (self._asked or self._ended()) and self._look() and not self._ended():
                return None
            self._wait(pid)
        return ending_of(self.run_directory, pid) or self._last_words(begun=begun)

    def _look(self) -> bool:
        """Show the dashboard to the owner; whether the run is to go on without this terminal."""
        with dashboard(str(self.run_directory.path), "--owner") as self._front:
            code = self._front.wait()
        self._front = None
        if code == STOP:
            self._asked.append(signal.SIGTERM)
        elif code in _INTERRUPTED:
            # Ctrl-C before it had the keyboard.
            self._asked.append(signal.SIGINT)
        elif code not in (LEFT, DETACH) and not self._asked:
            self._tick(SupervisorPhase.RUNNING, f"{_crashed(code)}; the run goes on")
        return code != LEFT and not self._asked

    def _wait(self, pid: int) -> None:
        """Until the supervisor ends; what is asked meanwhile is passed on, unless it only concludes."""
        told = 0
        while not self._ended():
            asked = self._asked[told:]
            if ending_of(self.run_directory, pid) is None:
                for number in asked:
                    self.supervisor.signal(number)
            note = DRAINING if asked and not told else ""
            told += len(asked)
            self._tick(SupervisorPhase.DRAINING if told else SupervisorPhase.RUNNING, note)

    def _last_words(self, *, begun: bool) -> Ending:
        """What is to be told of a supervisor that left no record of its end."""
        code = self.supervisor.ended() or 0
        if self._asked and not begun:
            return Ending(code=SIGNALLED + self._asked[0], message="stopped before anything was started")
        said = [line.removeprefix("error: ") for line in self.supervisor.last_lines() if line.startswith("error: ")]
        message = "\n".join(said) or self.supervisor.last_words(f"the supervisor ended ({exit_name(code)})")
        return Ending(code=code if code > 0 else SIGNALLED - code, message=message)

    def _ended(self) -> bool:
        return self.supervisor.wait(0)

    def _tick(self, phase: SupervisorPhase, note: str = "") -> None:
        waiting = ("the supervisor",) if phase is SupervisorPhase.STARTING else ()
        self.on_tick(SupervisorStatus(phase=phase, waiting_for=waiting, notes=(note,) if note else ()))
        self.supervisor.wait(_TICK_S)

    @contextmanager
    def _noting_signals(self) -> Iterator[None]:
        def note(number: int, frame: FrameType | None) -> None:  # noqa: ARG001 - the signature that signal.signal asks for
            if self._front is None:
                self._asked.append(signal.Signals(number))
            elif number == signal.SIGTERM:
                self._asked.append(signal.SIGTERM)
                self._front.terminate()
            # Ctrl-C is the dashboard's while it is in front.

        before = {number: signal.signal(number, note) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield
        finally:
            for number, action in before.items():
                signal.signal(number, action)
