"""The evaluations of one run: held-out before and after, validations between, and which adapter is best.

Rows go to eval/evaluations.jsonl, episodes to eval/. One evaluation at a time; each leases the version it measures.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import anyio
import structlog

from engine.adapters import Adapters
from engine.config import Config
from engine.evals.split import Evaluation, Suite, evaluate
from engine.rundir import JsonLines, RunDir, adapter_name, read_lines
from engine.seams import Seams
from engine.stream.writer import TrajectoryWriter
from engine.task import Split, Task

log = structlog.get_logger()


@dataclass(slots=True)
class Evaluations:
    """Measures adapter versions of one run and remembers, over restarts, what was measured."""

    run: RunDir
    config: Config
    tasks: Sequence[Task]
    seams: Seams
    adapters: Adapters
    writer: TrajectoryWriter
    live: Callable[[int], None]
    """Hears +1 and -1 as episodes start and end."""
    rows: list[dict[str, object]] = field(default_factory=list)
    _one: anyio.Lock = field(default_factory=anyio.Lock)

    def __post_init__(self) -> None:
        self.rows.extend(read_lines(self._file))

    @property
    def _file(self) -> Path:
        return self.run.eval / "evaluations.jsonl"

    def suite(self, name: str) -> Suite:
        """Tasks and settings of `heldout_before`, `validation` or `heldout_after`."""
        split = Split.VALIDATION if name == "validation" else Split.HELDOUT
        limit = self.config.eval.validation_tasks if name == "validation" else self.config.eval.heldout_tasks
        chosen = [(index, task) for index, task in enumerate(self.tasks) if task.split is split][:limit]
        return Suite(
            name=name,
            tasks=chosen,
            limits=self.config.limits.value(),
            sampling=self.config.sampling,
            live_slots=self.config.eval.live_slots,
            seed=self.config.run.seed,
        )

    def measured(self, name: str, version: int | None = None) -> bool:
        """Whether it was measured already (by this process or an earlier one)."""
        return any(row["name"] == name and version in (None, row["version"]) for row in self.rows)

    async def measure(self, name: str, version: int) -> Evaluation | None:
        """Evaluate one version, record it, and move adapters/best if it is the best validation so far.

        None if the pack has no tasks for it."""
        suite = self.suite(name)
        if not suite.tasks:
            return None
        async with self._one:
            if version not in self.adapters.versions.loaded:
                await self.adapters.serve(version)
            self.adapters.versions.lease(version)
            try:
                adapter = adapter_name(self.adapters.run_id, version)
                result = await evaluate(suite, self.seams, version, adapter, self.writer.write, self.live)
            finally:
                self.adapters.versions.release(version)
            log.info("evaluated", **result.row())
            previous = [float(str(row["mean"])) for row in self.rows if row["name"] == "validation"]
            best = name == "validation" and result.mean > max(previous, default=-1.0)
            await anyio.to_thread.run_sync(self._record, result, best)
        return result

    def _record(self, result: Evaluation, best: bool) -> None:  # noqa: FBT001
        self.rows.append(result.row())
        with JsonLines(self._file) as file:
            file.append(result.row())
            file.sync()
        if best:
            staged = self.run.adapters / f".best.tmp-{os.getpid()}"
            staged.unlink(missing_ok=True)
            staged.symlink_to(self.run.adapter(result.version).name)
            staged.replace(self.run.adapters / "best")
