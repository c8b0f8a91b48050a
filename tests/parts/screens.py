"""The real dashboard on an emulated terminal: what stands on it, and every byte that it was sent."""

import fcntl
import os
import re
import select
import struct
import termios
import threading
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

import psutil
import pyte

from tests.parts.terminals import Terminal

_ASKED = re.compile(rb"\x1b\[[<>=][0-9;]*[a-z]")
"""Sequences that pyte takes for others."""
_SLOW_TICK_S = 0.1


class _Place(NamedTuple):
    place: Path
    environment: dict[str, str]


class Screen(Terminal):
    """A command on a terminal of xterm's kind that answers no question about itself."""

    def __init__(self, place: Path, *arguments: object, columns: int = 120, lines: int = 36) -> None:
        self.raw = b""
        """Everything it was sent."""
        self.bytes_per_s = 0.0
        """How fast it reads; 0 is as fast as it can."""
        self._lock = threading.Lock()
        self._screen = pyte.Screen(columns, lines)
        self._stream = pyte.ByteStream(self._screen)
        known = {name: value for name, value in os.environ.items() if name not in ("COLORTERM", "NO_COLOR", "TMUX")}
        environment = {**known, "TERM": "xterm-256color"}
        super().__init__(_Place(place, environment), *arguments)
        self.resize(columns, lines)

    def _read(self) -> None:
        with suppress(OSError):
            while not self._hung_up:
                most = 65_536
                if self.bytes_per_s:
                    time.sleep(_SLOW_TICK_S)
                    most = int(self.bytes_per_s * _SLOW_TICK_S)
                if select.select([self.master], [], [], 0.05)[0]:
                    self._show(os.read(self.master, most))

    def _show(self, chunk: bytes) -> None:
        with self._lock:
            self.raw += chunk
            self._stream.feed(_ASKED.sub(b"", chunk))
            # What is read by other threads costs more than what feeds it: only once all has come.
            if not select.select([self.master], [], [], 0)[0]:
                self.text = "\n".join(self._screen.display)

    def resize(self, columns: int, lines: int) -> None:
        """Another size, as a window manager gives it."""
        with self._lock:
            self._screen.resize(lines, columns)
        fcntl.ioctl(self.master, termios.TIOCSWINSZ, struct.pack("HHHH", lines, columns, 0, 0))

    def types(self, keys: str, *words: str, timeout_s: float = 60, without: Sequence[str] = ()) -> None:
        """Press keys, until `words` stand on the screen and nothing of `without` does."""
        self.press(keys.encode())
        self.shows(*words, timeout_s=timeout_s, without=without)

    def shows(self, *words: str, timeout_s: float = 60, without: Sequence[str] = ()) -> None:
        """Until all the words stand on the screen, and nothing of `without`."""
        self.until(
            lambda: all(word in self.text for word in words) and not any(word in self.text for word in without),
            timeout_s,
        )

    def line(self, word: str) -> str:
        """The first line with `word`; empty if there is none."""
        return next((line for line in self.text.splitlines() if word in line), "")

    def clock(self) -> int:
        """What the clock on top says, in seconds."""
        found: list[tuple[str, ...]] = []

        def stands() -> bool:
            # A picture that is half drawn may have none.
            found[:] = re.findall(r" (\d\d):(\d\d):(\d\d) ", self.text)
            return bool(found)

        self.until(stands)
        return sum(int(part) * unit for part, unit in zip(found[0], (3600, 60, 1), strict=True))

    def moves(self, timeout_s: float = 60) -> None:
        """Until the clock on top goes on: it lives, and draws."""
        before = self.clock()
        self.until(lambda: self.clock() > before, timeout_s)

    def dashboard(self) -> psutil.Process:
        """The process that draws."""
        [found] = [
            child
            for child in psutil.Process(self.process.pid).children(recursive=True)
            if child.cmdline()[1:4] == ["-P", "-m", "tui"]
        ]
        return found

    def restored(self) -> bool:
        """Whether the terminal is as it was found: main screen, cursor, no mouse, keys echoed and read by lines."""
        last = {name: self.raw.rfind(name) for name in (b"?1049h", b"?1049l", b"?25h", b"?25l", b"?1003l", b"?1003h")}
        cooked = termios.tcgetattr(self.master)[3] & (termios.ECHO | termios.ICANON | termios.ISIG)
        return (
            last[b"?1049l"] > last[b"?1049h"] > 0
            and last[b"?25h"] > last[b"?25l"]
            and last[b"?1003l"] > last[b"?1003h"]
            and cooked == (termios.ECHO | termios.ICANON | termios.ISIG)
        )
