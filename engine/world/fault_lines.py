"""faults.jsonl of a run: every fault that was injected at the tool boundary, to be held against what came of it.

A line names the episode by task and seed, as a world knows it, and the number of the call. An episode that was played
again, by a run that was killed or in a second evaluation of its task, has its lines again.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from engine.rundir.event_lines import EventLines
from engine.task import Task
from engine.world.faults import ToolFault


@dataclass(frozen=True, slots=True)
class FaultLines:
    """Takes faults as they happen."""

    lines: EventLines
    clock: Callable[[], float]

    def add(self, task: Task, seed: int, call: int, tool: str, fault: ToolFault) -> None:
        """One fault happened now (engine.world.faults.OnFault)."""
        row = {"task": task.id, "seed": seed, "call": call, "tool": tool, "fault": fault, "at_s": self.clock()}
        self.lines.append(row)
