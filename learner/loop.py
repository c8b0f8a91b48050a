"""The learner's loop: form a step, train it, save it, publish it.

The order of one step makes every group trained or dropped exactly once, whatever is killed when (docs/learner.md 5.3)::

    gradients and update, all finite ─▶ checkpoint ─▶ steps.jsonl, metrics.jsonl ─▶ adapters/vN ─▶ progress.json

A step that is in no checkpoint never happened; one that is gets whatever is missing after it at the next start.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import structlog
import torch

from engine.config.tree import Config
from engine.errors import RunError
from engine.learnerdir.checkpoint import CheckpointState
from engine.learnerdir.counters import LearnerCounters
from engine.learnerdir.progress import LearnerProgress, LearnerState, write_progress
from engine.learnerdir.steps import TrainedStep
from engine.rundir.layout import RunDir, remove_staged, write_json
from engine.stream.integrity import RecordsPart, require_complete
from engine.stream.reader import StreamReader
from engine.telemetry.metrics import MetricRow
from engine.types import EpisodeGroup
from learner import health, records
from learner.advantage import Advantage, find_advantage
from learner.checkpoint import (
    Checkpoint,
    compared_settings,
    latest_checkpoint,
    require_same_settings,
    rng_state,
    settings_sha256,
)
from learner.forming import FormingRules, OpenStep
from learner.lifetime import Lifetime
from learner.metrics import Clock, metrics_row, staleness_tokens
from learner.model import LoraPolicy
from learner.probe import probe_mismatch
from learner.publish import publish
from learner.ranks import Order, Ranks
from learner.schedule import Schedule
from learner.step import GrpoStep, NotFiniteError, StepResult

_READ_TIMEOUT_S = 0.2
"""How long a stop may go unnoticed while waiting for groups."""

log = structlog.get_logger("learner")


class Learner:
    """Trains the policy of one run directory; with several ranks, this is rank 0 and learner.follow the others."""

    def __init__(self, run: RunDir, config: Config, lifetime: Lifetime, ranks: Ranks | None = None) -> None:
        self.run, self.config, self.lifetime, self.ranks = run, config, lifetime, ranks or Ranks()
        self.rules = FormingRules.of(config)
        self.schedule = Schedule.of(config)
        self.settings = compared_settings(run, config)
        self.counters = LearnerCounters()
        self.opened = OpenStep(version=0)
        self.rows: list[MetricRow] = []
        self.wait_s = self.read_s = self.step_s = self.publish_s = 0.0
        self.advantage: Advantage
        self.grpo: GrpoStep

    @property
    def policy(self) -> LoraPolicy:
        """What is trained."""
        return self.grpo.policy

    def serve(self, *, flush: bool) -> None:
        """Train until the last step, the end of the stream, or a stop.

        `flush` trains the groups left over at the end of a closed stream as one smaller step. Raises ConfigError and
        RunError with one sentence; AbandonedError if a stop cut a step; RankLostError if another rank ended."""
        self._begin()
        steps, closed = self.config.run.steps, False
        with StreamReader(self.run.trajectories, cursor=self.counters.cursor) as reader:
            while self.counters.step < steps and not self.lifetime.stopping:
                closed = not self._form(reader)
                if not closed or (flush and reader.closed and self.opened.usable):
                    self._train(reader.cursor, flushed=closed)
                if closed:
                    closed = reader.closed
                    break
        self.ranks.order(None)
        if closed or self.counters.step >= steps:
            self._progress(LearnerState.DONE)

    def fail(self, sentence: str) -> None:
        """Leave the last word for the engine and the supervisor."""
        self._progress(LearnerState.FAILED, sentence)

    # --- start ------------------------------------------------------------------------------------------------------

    def _begin(self) -> None:
        """Load, continue from the newest checkpoint or make version 0, and publish what is not published."""
        self.run.create()
        remove_staged(self.run.adapters)
        remove_staged(self.run.learner)
        checkpoint = latest_checkpoint(self.run)
        if checkpoint is not None:
            require_same_settings(self.run, checkpoint.state, self.settings)
            self.counters = checkpoint.state.counters
            self.opened = OpenStep(version=self.counters.version)
            require_complete(self.run, RecordsPart.TRAINING, RecordsPart.STEPS)
        self._progress(LearnerState.STARTING)
        learner = self.config.learner
        self.advantage = find_advantage(learner.advantage)
        warm_start = Path(learner.warm_start) if learner.warm_start and checkpoint is None else None
        self.grpo = GrpoStep.of(self.config, self.ranks, warm_start)
        if checkpoint is None:
            checkpoint = self._checkpoint(self.counters, {"max_abs": _max_abs(self.policy)}, None, None)
            checkpoint.write(self.run)
        else:
            self.grpo.resume(checkpoint)
            torch.set_rng_state(checkpoint.rng)
        self.rows = records.repair(self.run, checkpoint)
        publish(self.run, self.policy, checkpoint.adapter, checkpoint.state.published)
        self.ranks.begin(self.counters.step)
        self._progress(LearnerState.RUNNING)
        log.info("learner started", step=self.counters.step, cursor=self.counters.cursor)

    # --- one step ---------------------------------------------------------------------------------------------------

    def _form(self, reader: StreamReader) -> bool:
        """Take groups until the step is full; false if the stream is closed or a stop was asked for before that."""
        while len(self.opened.usable) < self.config.schedule.groups_per_step:
            started = time.perf_counter()
            found = reader.next(_READ_TIMEOUT_S)
            arrived = time.perf_counter()
            self.wait_s += arrived - started
            if found is None:
                if reader.closed or self.lifetime.stopping:
                    return False
                continue
            self._check_tokens(reader, found[0])
            self.opened.take(found[0], self.rules, self.advantage)
            self.read_s += time.perf_counter() - arrived
            self._progress(LearnerState.RUNNING)
        return True

    def _train(self, cursor: tuple[int, int], *, flushed: bool) -> None:
        started = time.perf_counter()
        step = self.counters.step + 1
        self.ranks.order(Order(cursor=cursor, step=step))
        episodes = self.opened.episodes
        mismatch = probe_mismatch(self.run, self.policy, episodes)
        probed = time.perf_counter()
        try:
            result = self.grpo.run(episodes, self.schedule.at(step), self.lifetime.must_abandon)
        except NotFiniteError as error:
            self._record_failure(step, str(error), error.metrics, error.tensor)
            raise
        clock = Clock(
            wait_s=self.wait_s,
            read_s=self.read_s,
            probe_s=probed - started,
            step_s=time.perf_counter() - started,
            publish_s=self.publish_s,
        )
        row = metrics_row(step, self.opened, result, mismatch, clock)
        self._check_health(row, step)
        computed = time.perf_counter()
        self._save(result, row, cursor, flushed=flushed)
        self.publish_s = time.perf_counter() - computed
        self.step_s = time.perf_counter() - started
        self.opened = OpenStep(version=self.counters.version)
        self.wait_s = self.read_s = 0.0
        self._progress(LearnerState.RUNNING)

    def _save(self, result: StepResult, row: MetricRow, cursor: tuple[int, int], *, flushed: bool) -> None:
        """Checkpoint, rows, adapter: in this order."""
        counters = self._counted().after(len(self.opened.usable), cursor, self.wait_s)
        tokens = staleness_tokens(result.tokens, self.opened.version)
        trained = TrainedStep(
            step=counters.step,
            version=counters.version,
            cursor=cursor,
            groups=tuple(usable.trained() for usable in self.opened.usable),
            dropped={str(reason): ids for reason, ids in self.opened.dropped.items()},
            staleness_tokens={str(staleness): count for staleness, count in tokens.items()},
            flushed=flushed,
        )
        told = {"max_abs": result.max_abs, "update_norm": result.update_norm, "loss": result.loss}
        checkpoint = self._checkpoint(counters, told, trained, row)
        checkpoint.write(self.run)
        records.append(self.run, trained, row)
        publish(self.run, self.policy, checkpoint.adapter, checkpoint.state.published)
        self.counters = counters

    def _checkpoint(
        self, counters: LearnerCounters, told: dict[str, float], trained: TrainedStep | None, row: MetricRow | None
    ) -> Checkpoint:
        published = {
            "version": counters.version,
            "step": counters.step,
            "parent_version": counters.version - 1 if counters.version else None,
            "cursor": counters.cursor,
            "update_norm": 0.0,
            "loss": None,
            **told,
        }
        state = CheckpointState(
            counters=counters,
            trained=trained,
            config_sha256=settings_sha256(self.settings),
            settings=self.settings,
            published=published,
            metrics_row=row,
        )
        return Checkpoint(
            state=state,
            adapter=self.policy.applied(),
            moments=self.grpo.optimizer_state(),
            rng=rng_state(),
        )

    # --- checks and reports -----------------------------------------------------------------------------------------

    def _check_tokens(self, reader: StreamReader, group: EpisodeGroup) -> None:
        """Refuse ids of another tokenizer, and a template that begins with two BOS."""
        known = self.policy.head.shape[0]
        if reader.header is not None and reader.header.vocab_size > known:
            raise RunError(
                f"{reader.directory}: written for a vocabulary of {reader.header.vocab_size}, the model has {known}; "
                "model.path is not the model that sampled these groups"
            )
        bos = self.policy.model.config.bos_token_id
        for episode in group.episodes:
            if bos is not None and episode.tokens is not None and list(episode.tokens.ids[:2]) == [bos, bos]:
                raise RunError(f"{episode.id}: begins with two BOS tokens: template and caller both add one")

    def _check_health(self, row: MetricRow, step: int) -> None:
        for sentence in health.warnings(row, self.rows):
            log.warning(sentence, step=step)
        self.rows.append(row)
        if reason := health.stop_reason(self.rows):
            self._record_failure(step, reason, row)
            before = max(0, self.counters.version - (health.PATIENCE - 1))
            raise RunError(
                f"step {step}: {reason}; nothing of it was published, and version {before} was published before the "
                "first of these steps"
            )

    def _record_failure(self, step: int, error: str, metrics: Mapping[str, Any], tensor: str | None = None) -> None:
        groups = [usable.group.id for usable in self.opened.usable]
        value = {"step": step, "groups": groups, "error": error, "tensor": tensor, "metrics": metrics}
        write_json(self.run.learner / "failed-step.json", value)

    def _counted(self) -> LearnerCounters:
        """The counters with what the open step has read and dropped."""
        return self.counters.with_open(self.opened.read, self.opened.dropped)

    def _progress(self, state: LearnerState, error: str = "") -> None:
        waiting = len(self.opened.usable)
        told = LearnerProgress(counters=self._counted(), waiting=waiting, step_s=self.step_s, state=state, error=error)
        write_progress(self.run, told)


def _max_abs(policy: LoraPolicy) -> float:
    return max(float(parameter.detach().abs().max()) for parameter in policy.parameters.values())
