"""Progress while a run works: one line per ten seconds."""

from __future__ import annotations

import time

from rich.console import Console

from engine.config.tree import Config
from engine.report.gauges import ProgressGauges, read_gauges
from engine.rundir.layout import RunDir
from engine.supervise.supervisor import SupervisorPhase, SupervisorStatus

_LINE_S = 10.0
_SAID_CHARACTERS = 100
_PHASES = {
    "starting": "starting",
    "heldout_before": "measuring held-out tasks, before",
    "training": "training",
    "heldout_after": "measuring held-out tasks, after",
    "draining": "draining",
    "done": "done",
}


class ProgressView:
    """The view that the supervisor calls at every tick."""

    def __init__(self, run: RunDir, config: Config, console: Console) -> None:
        self._run, self._config, self._console = run, config, console
        self._due = 0.0
        self._begun = time.monotonic()
        self._shown = ""

    def __call__(self, status: SupervisorStatus) -> None:
        """Show what is due: notes and another stage at once, the rest every ten seconds."""
        for note in status.notes:
            self._console.print(f"  ! {note}", style="yellow", markup=False, highlight=False)
        now = time.monotonic()
        stage = f"{status.phase} {status.waiting_for}"
        if now < self._due and stage == self._shown:
            return
        self._due, self._shown = now + _LINE_S, stage
        if status.phase is SupervisorPhase.STARTING:
            waiting = ", ".join(status.waiting_for) or "the engine"
            said = f"  | {status.said[:_SAID_CHARACTERS]}" if status.said else ""
            self._show(f"{_clock(now - self._begun)}  starting: waiting for {waiting}{said}")
            return
        gauges = read_gauges(self._run, self._config)
        if gauges.phase != "done":
            self._show(
                f"{_clock(gauges.run_s)}  {progress_line(gauges, draining=status.phase is SupervisorPhase.DRAINING)}"
            )

    def _show(self, line: str) -> None:
        self._console.print(line, markup=False, highlight=False, soft_wrap=True)


def progress_line(gauges: ProgressGauges, *, draining: bool = False) -> str:
    """One line: phase, step, reward and its parts, adapter version, rates, what is live, servers that are down, ETA."""
    phase = "draining" if draining else _PHASES.get(gauges.phase, gauges.phase)
    if gauges.phase.startswith("heldout") and not draining:
        parts = [phase, f"{gauges.eval_live} live"]
    else:
        reward = f"reward {gauges.reward:.2f} (F {gauges.F:.2f} N {gauges.N:.2f} I {gauges.I:.2f})"
        parts = [
            phase,
            f"step {gauges.step}/{gauges.steps}",
            reward,
            f"adapter v{gauges.version}" if gauges.version >= 0 else "no adapter yet",
            f"{gauges.episodes_per_s:.1f} episodes/s",
            f"{gauges.tokens_per_s:,.0f} tokens/s",
            f"{gauges.live} live",
        ]
    if gauges.servers_down:
        parts.append(f"{gauges.servers_down} policy server{'s' if gauges.servers_down > 1 else ''} down")
    if gauges.eta_s is not None:
        parts.append(f"ETA {_clock(gauges.eta_s)}")
    return "  ".join(parts)


def _clock(seconds: float) -> str:
    whole = int(seconds)
    if whole < 3600:
        return f"{whole // 60}:{whole % 60:02d}"
    return f"{whole // 3600}:{whole // 60 % 60:02d}:{whole % 60:02d}"
