"""The evaluations of one run: held-out before and after, validations between, and which adapter is best.

Rows go to eval/evaluations.jsonl, episodes to eval/. One evaluation at a time; each leases the version it measures.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import anyio
import structlog

from engine.config.tree import Config
from engine.core.seams import Seams
from engine.core.versions import Versions
from engine.errors import RunError
from engine.evals.split import Evaluation, Suite, evaluate
from engine.rundir.layout import JsonLines, RunDir, adapter_name, point_link, read_lines
from engine.stream.writer import TrajectoryWriter
from engine.task import Split, Task
from engine.types import EpisodeGroup

log = structlog.get_logger()


class ServedVersions(Protocol):
    """What measuring needs of the adapter swap (engine.run.swap.AdapterSwap)."""

    run_id: str
    versions: Versions

    async def serve(self, version: int) -> None:
        """Load one version on every server, then make it leasable."""
        ...


@dataclass(slots=True)
class Evaluations:
    """Measures adapter versions of one run and remembers, over restarts, what was measured."""

    run: RunDir
    config: Config
    tasks: Sequence[Task]
    seams: Seams
    adapters: ServedVersions
    writer: TrajectoryWriter
    flush: Callable[[], Awaitable[None]]
    """Commits the world's mapping; always before the frame that used it."""
    live: Callable[[int], None]
    """Hears +1 and -1 as episodes start and end."""
    rows: list[dict[str, Any]] = field(default_factory=list)
    _one: anyio.Lock = field(default_factory=anyio.Lock)

    def __post_init__(self) -> None:
        self.rows.extend(read_lines(self._file))
        self.point_best()

    @property
    def _file(self) -> Path:
        return self.run.eval / "evaluations.jsonl"

    def suite(self, name: str) -> Suite:
        """Tasks and settings of `heldout_before`, `validation` or `heldout_after`."""
        split = Split.VALIDATION if name == "validation" else Split.HELDOUT
        limit = self.config.eval.validation_tasks if name == "validation" else self.config.eval.heldout_tasks
        chosen = [(index, task) for index, task in enumerate(self.tasks) if task.split is split][:limit]
        return Suite.of(self.config, name, chosen)

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
                result = await evaluate(suite, self.seams, version, adapter, self._emit, self.live)
                if result.masked == result.episodes:
                    raise RunError(f"{name}: not one of {result.episodes} episodes could be scored; look at log.jsonl")
                log.info("evaluated", **result.row())
                await anyio.to_thread.run_sync(self._record, result)
            finally:
                # Only now: the version may be the best, and nobody deletes what is leased.
                self.adapters.versions.release(version)
        return result

    async def _emit(self, group: EpisodeGroup) -> EpisodeGroup:
        await self.flush()
        written = await self.writer.write(group)
        if self.seams.live is not None:
            self.seams.live.written(written)
        return written

    def _record(self, result: Evaluation) -> None:
        self.rows.append(result.row())
        with JsonLines(self._file) as file:
            file.append(result.row())
            file.sync()
        self.point_best()

    def point_best(self) -> None:
        """Turn adapters/best to the version with the best validation reward; a kill may have left it undone.

        A validation that could not score half of its episodes says nothing."""
        means = {
            row["version"]: row["mean"]
            for row in self.rows
            if row["name"] == "validation" and 2 * row["masked"] <= row["episodes"]
        }
        there = {version: mean for version, mean in means.items() if self.run.adapter(version).is_dir()}
        if not there:
            return
        best = max(there, key=there.__getitem__)
        if best != self.run.best:
            point_link(self.run.adapters / "best", self.run.adapter(best).name)
