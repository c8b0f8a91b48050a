"""The engine process: composes the loop of one run and drives it from its first adapter to its last number.

::

    starting -> heldout_before -> training (validations beside it) -> heldout_after -> done
                                     SIGTERM: draining -> groups in flight finish within run.drain_s -> exit 0

engine.run.__main__ starts it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import anyio
import structlog

from engine.attach.server import Attach
from engine.core.live import LiveEpisodes
from engine.core.versions import Versions
from engine.evals.recorded import Evaluations
from engine.packs.pack import Pack
from engine.policy.servers import Loads
from engine.run.compose import RunParts
from engine.run.counters import EngineCounters, process_row
from engine.run.progress import LearnerFollower
from engine.run.rollout import Rollout
from engine.run.served_policy import OnEvent
from engine.run.swap import AdapterSwap
from engine.rundir.layout import RunDir, read_json, write_json
from engine.stream.reader import written_positions
from engine.stream.segment import SegmentHeader
from engine.stream.writer import TrajectoryWriter, WriterSettings
from engine.telemetry import MetricsFile
from engine.telemetry import engine_metrics as keys
from engine.telemetry.metrics import MetricRow

log = structlog.get_logger()

_ROW_S = 1.0
_MB = 1_000_000


@dataclass(slots=True)
class Engine:
    """One run's loop: what it is made of, and its phases."""

    run: RunDir
    parts: RunParts
    learner: LearnerFollower
    versions: Versions
    rollout: Rollout
    evaluations: Evaluations
    writer: TrajectoryWriter
    eval_writer: TrajectoryWriter
    counters: EngineCounters
    attach: Attach
    _history: list[dict[str, Any]] = field(default_factory=list)
    _changed: anyio.Event = field(default_factory=anyio.Event)

    def __post_init__(self) -> None:
        self.learner.on_change = self.changed
        self._history.extend((read_json(self.run.path / "phase.json") or {"history": []})["history"])

    def changed(self) -> None:
        """The learner's counts or the current version changed: look again, everywhere."""
        admission = self.rollout.scheduler.admission
        admission.freed(self.learner.trained, self.learner.dropped)
        admission.closed = self._finished()
        self.rollout.scheduler.wake()
        # Everyone who waits hears it; who comes later waits for the next change.
        self._changed.set()
        self._changed = anyio.Event()

    async def drive(self) -> None:
        """All phases, in order; returns when the run is done or drained."""
        async with anyio.create_task_group() as tg:
            served, attach = self.parts.served, self.attach
            for background in (self.attach.lag.run, self.learner.watch, self._rows, served.watch, attach.serve):
                tg.start_soon(background)
            await tg.start(self.writer.run)
            await tg.start(self.eval_writer.run)
            await self._phase("starting")
            await self._until(partial(self._serves, await anyio.to_thread.run_sync(self._least_version)))
            await self._measure_once("heldout_before", 0)
            await self._train()
            await self.writer.close()
            if self._finished():
                last = self.learner.progress.counters.version
                await self._until(partial(self._serves, last))
                await self._validate(last)
                await self._measure_once("heldout_after", last)
                await self._phase("done")
            await self.eval_writer.close()
            tg.cancel_scope.cancel()

    async def _train(self) -> None:
        """Rollouts until the learner is done, or until a drain has run dry."""
        if self.rollout.scheduler.draining or self._finished():
            return
        await self._phase("training")
        async with anyio.create_task_group() as tg:
            tg.start_soon(self._validations)

            async def until_done() -> None:
                await self._until(self._finished)
                tg.cancel_scope.cancel()

            tg.start_soon(until_done)
            await self.rollout.scheduler.run()
            tg.cancel_scope.cancel()
        self.attach.live.settle()

    async def drain(self) -> None:
        """Admit nothing more; what is in flight may finish within run.drain_s, then it is cancelled."""
        self.rollout.scheduler.draining = True
        self.rollout.scheduler.wake()
        await self._phase("draining")

    async def _validations(self) -> None:
        every, due = self.parts.config.eval.every, self.parts.config.eval.every
        while every:
            await self._until(partial(self._serves, due))
            version = self.versions.current
            await self._validate(version)
            due = (version // every + 1) * every

    async def _validate(self, version: int) -> None:
        if self.parts.config.eval.every and not self.evaluations.measured("validation", version):
            await self.evaluations.measure("validation", version)

    async def _measure_once(self, name: str, version: int) -> None:
        # A run that was made longer is measured again; where it began is measured once.
        which = version if name == "heldout_after" else None
        if self.parts.config.eval.heldout_tasks and not self.evaluations.measured(name, which):
            await self._phase(name)
            await self.evaluations.measure(name, version)

    async def _until(self, condition: Callable[[], bool]) -> None:
        while not condition():
            await self._changed.wait()

    def _finished(self) -> bool:
        return self.learner.progress.counters.step >= self.parts.config.run.steps

    def _serves(self, version: int) -> bool:
        return self.versions.current >= version

    def _least_version(self) -> int:
        """On resume nothing starts before the adapter of the newest checkpoint is served."""
        return max(self.run.checkpoints(), default=0)

    async def _phase(self, name: str) -> None:
        self._history.append({"phase": name, "start_s": self.parts.seams.clock()})
        log.info("phase", phase=name)
        state = {"phase": name, "history": self._history}
        await anyio.to_thread.run_sync(write_json, self.run.path / "phase.json", state)

    async def _rows(self) -> None:
        loads = Loads(running=0, queued=0, kv_used=0.0)
        with await anyio.to_thread.run_sync(MetricsFile, self.run.metrics) as metrics:
            try:
                while True:
                    loads = await self.parts.served.loads()
                    scheduler = self.rollout.scheduler
                    scheduler.slots.adapt(scheduler.live, room=loads.room)
                    scheduler.wake()
                    await self._write_row(metrics, loads)
                    await anyio.sleep(_ROW_S)
            finally:
                # The last row has what the last second counted.
                with anyio.CancelScope(shield=True):
                    await self._write_row(metrics, loads)

    async def _write_row(self, metrics: MetricsFile, loads: Loads) -> None:
        # Counted on the loop, where the counters change: the thread gets a copy.
        known = {**self._row(loads), **self.parts.account(), **self.counters.row()}
        await anyio.to_thread.run_sync(lambda: metrics.append({**known, **process_row()}))

    def _row(self, loads: Loads) -> MetricRow:
        scheduler, versions = self.rollout.scheduler, self.versions
        admission = scheduler.admission
        lag_p50_s, lag_p99_s = self.attach.lag.delays.quantiles_s(0.5, 0.99)
        return {
            keys.RUN_S: self.parts.seams.clock(),
            keys.EPISODES_LIVE: scheduler.live,
            keys.EPISODES_STARTED: scheduler.started,
            keys.GROUPS_ADMITTED: len(admission.written) + len(admission.in_flight),
            keys.GROUPS_WRITTEN: len(admission.written),
            keys.GROUPS_TRAINED: admission.trained,
            keys.GROUPS_DROPPED: admission.dropped,
            keys.ADAPTER_VERSION: versions.current,
            keys.ADAPTERS_LOADED: len(versions.loaded),
            keys.POLICY_QUEUE: loads.queued,
            keys.POLICY_RUNNING: loads.running,
            keys.KV_USED: loads.kv_used,
            keys.SERVERS_DOWN: loads.down,
            keys.LIVE_SLOTS: scheduler.slots.limit,
            keys.WAIT_ADMISSION: scheduler.learner_wait_s,
            keys.LAG_P50: lag_p50_s,
            keys.LAG_P99: lag_p99_s,
            keys.STREAM_BYTES: self.writer.statistics().bytes,
            **self.attach.live.stages.row(),
        }


def compose(run: RunDir, parts: RunParts, pack: Pack, on_event: OnEvent) -> Engine:
    """Wire the components; none of them knows the engine."""
    config, manifest, counters = parts.config, read_json(run.manifest) or {}, EngineCounters()
    sizes = WriterSettings(
        segment_bytes=int(config.stream.segment_mb * _MB), low_water_bytes=int(config.stream.low_water_mb * _MB)
    )
    header = _header(manifest)
    clock, attach = parts.seams.clock, Attach(run, LiveEpisodes(), parts.seams.clock)
    seams = replace(parts.seams, live=attach.live)
    writer = TrajectoryWriter(run.trajectories, header, sizes, clock)
    eval_writer = TrajectoryWriter(run.eval, header, sizes, clock)
    versions = Versions(slots=parts.served.adapter_slots)
    swap = AdapterSwap(
        run=run,
        run_id=manifest["run_id"],
        versions=versions,
        servers=parts.served.servers,
        on_event=on_event,
        clock=clock,
        keep_every=config.stream.keep_adapters_every,
        max_staleness=config.schedule.max_staleness,
    )
    rollout = Rollout(
        config=config,
        run_id=manifest["run_id"],
        tasks=pack.tasks,
        seams=seams,
        versions=versions,
        writer=writer,
        flush=parts.flush,
        counters=counters,
        written=set(written_positions(run.trajectories)),
    )
    evaluations = Evaluations(
        run=run,
        config=config,
        tasks=pack.tasks,
        seams=seams,
        adapters=swap,
        writer=eval_writer,
        flush=parts.flush,
        live=counters.evaluating,
    )
    return Engine(
        run=run,
        parts=parts,
        learner=LearnerFollower(run=run, swap=swap),
        versions=versions,
        rollout=rollout,
        evaluations=evaluations,
        writer=writer,
        eval_writer=eval_writer,
        counters=counters,
        attach=attach,
    )


def _header(manifest: Mapping[str, Any]) -> SegmentHeader:
    return SegmentHeader(
        run_id=manifest["run_id"],
        model_revision=manifest["model_revision"],
        tokenizer_hash=manifest["tokenizer_sha256"] or "",
        chat_template_hash=manifest["template_sha256"],
        vocab_size=manifest["vocab_size"],
        pack_hash=manifest["pack_sha256"],
    )
