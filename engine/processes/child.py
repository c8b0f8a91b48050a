"""Child processes of a run: how one is started, ended, and found again after its supervisor died.

All children share one process group of their own, so that Ctrl-C on the terminal reaches the supervisor alone (it then
drains in order) and one signal to the group ends them all. `processes.json` records pid, start time and
command line of each; a later supervisor ends exactly those that still match all three. Of the supervisor it records pid
and start time, by which other commands find it, and how the run ended under it.
"""

from __future__ import annotations

import ctypes
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections import deque
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

from engine.config.environment import child_environment
from engine.processes import alive
from engine.rundir.layout import RunDir, read_json, write_json

PYTHON = (sys.executable, "-P")
"""How a process of our own is started: no module of the working directory, which may be anybody's, hides ours."""
_WINDOW_S = 600.0
_LONGEST_BACKOFF_S = 32.0
_GRACE_S = 5.0
"""A process whose start time differs by less from the recorded one is the recorded one."""
_FAILED = (1, 2)
"""Exit codes of a process that ended with an error of its own, or refused its arguments."""
_NO_SPACE_BYTES = 100_000
_NOISE = re.compile(r"^\s*(Traceback|File |at |\^+|~*\^|During handling|\+-|\||$)")

_CAUSES = (
    ("address already in use", "Its port was taken by another program; start the run again for a new one."),
    ("No space left", "The disk is full; free some, then `synth-engine run --resume`."),
    (
        "No module named 'sglang'",
        "What its `sglang` key names holds no SGLang; `synth-engine install-sglang` makes one that does.",
    ),
    ("ModuleNotFoundError", "A package is missing; install its environment again (make run, or install-sglang)."),
    (
        "out of memory|OutOfMemoryError|Not enough memory",
        "The GPU's memory is full: end what else runs there (see `nvidia-smi`), or lower its server's memory_fraction.",
    ),
)
"""What the last words of a process say, and what that means for the user; the first that fits."""

_PR_SET_PDEATHSIG = 1
_LIBC = ctypes.CDLL(None) if sys.platform == "linux" else None

# glibc returns freed tensors to the kernel and takes them back page by page: up to 40 times slower for torch on a small
# machine (docs/learner.md 4). These keep the memory in the process.
TORCH_ALLOCATOR = {
    "MALLOC_MMAP_MAX_": "0",
    "MALLOC_TRIM_THRESHOLD_": "20000000000",
    "MALLOC_TOP_PAD_": "268435456",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Command:
    """What to start."""

    name: str
    """server-0, endpoint-sim, learner, engine."""
    argv: tuple[str, ...]
    log: Path
    """Where stdout and stderr are appended."""
    environment: Mapping[str, str]
    leashed: bool = False
    """It knows no `--parent-pid`: the kernel is asked to end it when its parent dies (Linux)."""


def torch_environment(threads: int) -> dict[str, str]:
    """The environment of a child that computes with torch on `threads` threads."""
    # A second OpenMP thread collapses when another process takes its core (docs/learner.md 4).
    count = str(threads)
    return child_environment(
        OMP_NUM_THREADS=count, MKL_NUM_THREADS=count, TOKENIZERS_PARALLELISM="false", **TORCH_ALLOCATOR
    )


class Child:
    """One process of a run, over its restarts."""

    def __init__(self, command: Command) -> None:
        self.command = command
        self.restarts = 0
        """Over the whole life of this supervisor."""
        self.due: float | None = None
        """When it is to be started again (monotonic seconds); None unless it waits for that."""
        self.started_at = 0.0
        """Wall clock of the last start, comparable with modification times."""
        self._recent: deque[float] = deque()
        self._ended: tuple[float, list[str]] = (0.0, [])
        self._process: subprocess.Popen[bytes] | None = None
        self._log_start = 0

    @property
    def name(self) -> str:
        """The command's name."""
        return self.command.name

    @property
    def pid(self) -> int | None:
        """Its pid while it was not seen to end."""
        return None if self._process is None else self._process.pid

    def start(self, group: int | None) -> None:
        """Start it in process group `group` (0: a new one, which it leads; None: a session of its own, too)."""
        self.due = None
        self.started_at = time.time()
        with self.command.log.open("ab") as log:
            self._log_start = log.tell()
            self._process = subprocess.Popen(
                self.command.argv,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                env=self.command.environment,
                process_group=group,
                start_new_session=group is None,
                # Safe here: a supervisor has one thread.
                preexec_fn=leash if self.command.leashed else None,  # noqa: PLW1509
            )

    def ended(self) -> int | None:
        """Its exit code, once: None while it runs and after it was reported."""
        code = None if self._process is None else self._process.poll()
        if code is not None:
            self._process = None
        return code

    def signal(self, number: signal.Signals) -> None:
        """Signal it, if it runs."""
        if self._process is not None:
            self._process.send_signal(number)

    def wait(self, timeout_s: float) -> bool:
        """Whether it ended within `timeout_s`."""
        if self._process is None:
            return True
        try:
            self._process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            return False
        return True

    def stop(self) -> None:
        """Ask it to end, wait, then end it."""
        self.signal(signal.SIGTERM)
        if not self.wait(_GRACE_S):
            self.signal(signal.SIGKILL)
            self.wait(_GRACE_S)
        self.ended()

    def repeats(self, code: int) -> bool:
        """Whether it failed with the words of its last end, ten minutes ago at most: so would another start."""
        (before_s, before), now = self._ended, time.monotonic()
        words = self.last_lines() if code in _FAILED else []
        self._ended = (now, words)
        return bool(words) and words == before and now - before_s < _WINDOW_S

    def restart_later(self, limit: int) -> bool:
        """Set `due` to 1, 2, 4, ... seconds from now; false if `limit` restarts in ten minutes are used up."""
        now = time.monotonic()
        while self._recent and self._recent[0] < now - _WINDOW_S:
            self._recent.popleft()
        if len(self._recent) >= limit:
            return False
        self.due = now + min(2.0 ** len(self._recent), _LONGEST_BACKOFF_S)
        self._recent.append(now)
        self.restarts += 1
        return True

    def last_lines(self, count: int = 8) -> list[str]:
        """The last useful lines that this start wrote to its log: no blank lines, no frames of a traceback."""
        with self.command.log.open("rb") as log:
            log.seek(max(self._log_start, log.seek(0, os.SEEK_END) - 65_536))
            lines = log.read().decode("utf-8", "replace").splitlines()
        # The source line of a traceback's frame is indented by four; its message is not.
        useful = [line.rstrip() for line in lines if not _NOISE.match(line) and not line.startswith("    ")]
        return useful[-count:]

    def last_words(self, sentence: str) -> str:
        """A sentence with those lines below it."""
        lines = "".join(f"\n  | {line}" for line in self.last_lines())
        return f"{sentence.strip()}\nThe end of {self.command.log}:{lines or ' (empty)'}"


def leash() -> None:
    """In the child, before it becomes the command: SIGTERM when the parent is gone (Linux)."""
    if _LIBC is not None:
        _LIBC.prctl(_PR_SET_PDEATHSIG, int(signal.SIGTERM))


def likely_cause(code: int, lines: Iterable[str], run: Path) -> str:
    """One sentence on why a process of `run` ended with `code`, or "" where the log has to speak for itself."""
    text = "\n".join(lines)
    if code == -signal.SIGKILL:
        return "It was killed from outside; the kernel does that when memory runs out: lower schedule.live_slots."
    if code in (-signal.SIGSEGV, -signal.SIGABRT, -signal.SIGILL):
        return f"It crashed in native code ({signal.Signals(-code).name}); reinstall the environment."
    # On a full disk the log has no words.
    if shutil.disk_usage(run).free < _NO_SPACE_BYTES:
        text += "No space left"
    return next((cause for words, cause in _CAUSES if re.search(words, text, re.IGNORECASE)), "")


def record(run: RunDir, children: Iterable[Child], ending: Mapping[str, Any] | None = None) -> None:
    """Write processes.json: what runs now, so that a later supervisor can end what this one leaves behind.

    `ending` is code and message of a run that this supervisor has brought to its end."""
    rows = []
    for child in children:
        if child.pid is None:
            continue
        try:
            started = psutil.Process(child.pid).create_time()
        except psutil.NoSuchProcess:
            continue
        rows.append({"name": child.name, "pid": child.pid, "started": started, "argv": list(child.command.argv)})
    own = {"supervisor": os.getpid(), "supervisor_started": psutil.Process().create_time()}
    write_json(run.processes, {**own, "ending": ending, "processes": rows})


def end_orphans(run: RunDir) -> list[str]:
    """End what an earlier supervisor of this run left running; returns the names.

    A process counts only if pid, start time and command line are the recorded ones. Call it under the run's lock."""
    recorded = read_json(run.processes) or {"processes": []}
    orphans = {}
    for row in recorded["processes"]:
        process = alive.found(row["pid"], row["started"])
        with suppress(psutil.NoSuchProcess, psutil.AccessDenied):
            if process is not None and process.cmdline() == row["argv"]:
                orphans[process] = str(row["name"])
    for process in orphans:
        _quietly(process, signal.SIGTERM)
    _, left = psutil.wait_procs(list(orphans), timeout=_GRACE_S)
    for process in left:
        _quietly(process, signal.SIGKILL)
    psutil.wait_procs(left, timeout=_GRACE_S)
    return list(orphans.values())


def _quietly(process: psutil.Process, number: signal.Signals) -> None:
    try:
        process.send_signal(number)
    except psutil.NoSuchProcess:
        return
