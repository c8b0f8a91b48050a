"""`synth-engine` on a terminal of its own, with a stand-in for the dashboard that ends as the test says."""

import fcntl
import json
import os
import pty
import select
import signal
import struct
import subprocess
import sys
import termios
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Protocol, Self

import psutil

from engine.processes.alive import lives
from engine.rundir.layout import RunDir, write_json
from engine.supervise.background import ending_of, supervisor_of
from tests.parts.children import child
from tests.parts.waiting import wait_until

STAND_IN = """
import json, os, pathlib, signal, sys, time, tty
# The leash has to end it, not the terminal that the test takes away.
signal.signal(signal.SIGHUP, signal.SIG_IGN)
place = pathlib.Path(os.environ["STAND_IN"])
argv = sys.argv[1:]
if "--shot" in argv:
    head = '<svg viewBox="0 0 800 600.4" xmlns="http://www.w3.org/2000/svg">'
    picture = head + '<rect width="800" height="601" fill="red"/></svg>'
    pathlib.Path(argv[argv.index("--shot") + 1]).write_text(picture)
    (place / "shown").write_text(json.dumps(argv))
    sys.exit(0)
if (place / "picked").exists():
    pathlib.Path(argv[argv.index("--chosen") + 1]).write_text((place / "picked").read_text())
if "raw" in os.environ["STAND_IN"]:
    tty.setraw(0)
(place / "shown.new").write_text(json.dumps(argv))
(place / "shown.new").rename(place / "shown")
while not (place / "choice").exists():
    time.sleep(0.02)
choice = (place / "choice").read_text()
if choice == "crash":
    raise RuntimeError("the picture broke")
if choice == "killed":
    os.kill(os.getpid(), signal.SIGKILL)
sys.exit(int(choice))
"""


class Surroundings(Protocol):
    """Where a command is started, and with which environment."""

    @property
    def place(self) -> Path: ...

    @property
    def environment(self) -> Mapping[str, str]: ...


class StandIn:
    """The dashboard that the commands find instead of ours."""

    def __init__(self, place: Path) -> None:
        self.place = place
        (place / "fake" / "tui").mkdir(parents=True)
        (place / "fake" / "tui" / "__main__.py").write_text(STAND_IN)
        self.environment = {
            **os.environ,
            "TERM": "xterm-256color",
            "PYTHONPATH": str(place / "fake"),
            "STAND_IN": str(place),
        }

    def choose(self, choice: object) -> None:
        """End it: an exit code, `crash` or `killed`."""
        (self.place / "choice.new").write_text(str(choice))
        (self.place / "choice.new").rename(self.place / "choice")

    def pick(self, path: Path) -> None:
        """Of several runs, this one."""
        (self.place / "picked").write_text(str(path))

    def shown(self) -> list[str] | None:
        """What it was started with, once it was."""
        path = self.place / "shown"
        return list(map(str, json.loads(path.read_text()))) if path.exists() else None


def _as_a_login_does() -> None:
    fcntl.ioctl(0, termios.TIOCSCTTY, 0)
    # Tests that run under nohup, in the background or in a worker of pytest-xdist would pass on that they ignore these.
    for number in (signal.SIGHUP, signal.SIGINT):
        signal.signal(number, signal.SIG_DFL)


class Terminal:
    """A command that leads a session on a terminal, as a login shell's does; neither outlives the block."""

    def __init__(self, stand_in: Surroundings, *arguments: object) -> None:
        self.master, slave = pty.openpty()
        fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", 40, 200, 0, 0))
        self.process = subprocess.Popen(
            [sys.executable, "-m", "engine.cli", *map(str, arguments)],
            stdin=slave,
            stdout=slave,
            stderr=slave,
            cwd=stand_in.place,
            env=stand_in.environment,
            start_new_session=True,
            preexec_fn=_as_a_login_does,  # noqa: PLW1509 - a few calls, no lock
        )
        os.close(slave)
        self.text = ""
        self._hung_up = False
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        with suppress(OSError):
            while not self._hung_up:
                # A reader that waits in the kernel would keep the terminal open.
                if select.select([self.master], [], [], 0.05)[0]:
                    self.text += os.read(self.master, 65_536).decode("utf-8", "replace").replace("\r\n", "\n")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.process.kill()
        self.process.wait()
        self.hang_up()

    def press(self, keys: bytes) -> None:
        """Type."""
        os.write(self.master, keys)

    def hang_up(self) -> None:
        """Close the terminal, as a lost ssh does."""
        if not self._hung_up:
            self._hung_up = True
            self._reader.join(5)
            os.close(self.master)

    def echoes(self) -> bool:
        """Whether it shows what is typed, as a shell needs it."""
        return bool(termios.tcgetattr(self.master)[3] & termios.ECHO)

    def ended(self, timeout_s: float = 60) -> int:
        """The exit code, with everything read."""
        code = self.process.wait(timeout_s)
        self._reader.join(5)
        return code

    def until(self, condition: Callable[[], object], timeout_s: float = 60) -> None:
        """Until it holds; the command must not end before."""
        wait_until(condition, timeout_s, while_runs=self.process, told=lambda: self.text)


def end(run: RunDir, timeout_s: float = 30) -> None:
    """Leave nothing of the run running, and return when it is gone: the second signal ends everything at once."""
    if not run.processes.exists() or (supervisor := supervisor_of(run)) is None:
        return

    def ended() -> bool:
        with suppress(psutil.NoSuchProcess):
            supervisor.terminate()
            psutil.wait_procs([supervisor], 0.3)
        return not lives(supervisor)

    wait_until(ended, timeout_s)


def gone(process: psutil.Process, timeout_s: float) -> None:
    """Return when it has ended."""
    wait_until(lambda: not lives(process), timeout_s, told=lambda: process)


@contextmanager
def live(run: RunDir, *, started: float = 0.0) -> Iterator[subprocess.Popen[bytes]]:
    """A process that stands in for the supervisor of `run`; `started` falsifies its recorded start by so much."""
    with child("sleep", 60) as process:
        begun = psutil.Process(process.pid).create_time() + started
        write_json(
            run.processes,
            {"supervisor": process.pid, "supervisor_started": begun, "ending": None, "processes": []},
        )
        yield process


def stopped(run: RunDir, pid: int) -> bool:
    """Whether the run's supervisor `pid` has ended on SIGTERM, with its children."""
    ending = ending_of(run, pid)
    return ending is not None and ending.code == 128 + signal.SIGTERM and not _lives(pid)


def _lives(pid: int) -> bool:
    return psutil.pid_exists(pid) and lives(psutil.Process(pid))
