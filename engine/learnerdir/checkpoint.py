"""learner/checkpoint-NNNNN/state.json: all that a resume continues from except tensors."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Self

from engine.errors import RunError
from engine.learnerdir import UNUSABLE
from engine.learnerdir.counters import LearnerCounters
from engine.learnerdir.steps import TrainedStep
from engine.rundir.layout import RunDir, read_json

STATE_FILE = "state.json"


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckpointState:
    """state.json of a checkpoint: the state after a step (step 0: before the first)."""

    counters: LearnerCounters
    trained: TrainedStep | None
    """The step's row of steps.jsonl; None for step 0."""
    config_sha256: str = ""
    """Hash of the settings that the checkpoint depends on."""
    settings: Mapping[str, Any] = field(default_factory=dict)
    """Those settings by key ("learner.lr"); empty in checkpoints of before they were written."""
    published: Mapping[str, Any] = field(default_factory=dict)
    """What meta.json of this version tells of the step."""
    metrics_row: Mapping[str, float | int] | None = None
    """The step's row of metrics.jsonl; None for step 0."""

    def value(self) -> dict[str, Any]:
        """Returns it as JSON, as the learner writes it."""
        settings = {"settings": self.settings} if self.settings else {}
        return {
            "counters": self.counters.value(),
            "config_sha256": self.config_sha256,
            **settings,
            "published": self.published,
            "step_row": None if self.trained is None else self.trained.value(),
            "metrics_row": self.metrics_row,
        }

    def simulated_value(self) -> dict[str, Any]:
        """Returns it as JSON, as the simulated learner writes it: without tensors, metrics or a version of its own."""
        position = self.counters.value()
        del position["version"]
        return {"position": position, "row": None if self.trained is None else self.trained.value()}

    @classmethod
    def of(cls, value: Mapping[str, Any]) -> Self:
        """Reads what `value` or `simulated_value` returns.

        Raises KeyError, TypeError or ValueError for another shape."""
        if "position" in value:
            position, row = value["position"], value["row"]
            counters = LearnerCounters.of({**position, "version": position["step"]})
            return cls(counters=counters, trained=None if row is None else TrainedStep.of(row))
        row = value["step_row"]
        return cls(
            counters=LearnerCounters.of(value["counters"]),
            trained=None if row is None else TrainedStep.of(row),
            config_sha256=str(value["config_sha256"]),
            settings=dict(value.get("settings", {})),
            published=value["published"],
            metrics_row=value["metrics_row"],
        )


def read_checkpoint(run: RunDir, step: int) -> CheckpointState:
    """Returns the state of one checkpoint.

    Raises RunError, with the remedy, if it is missing or unreadable."""
    path = run.checkpoint(step)
    try:
        value = read_json(path / STATE_FILE)
        if value is not None:
            return CheckpointState.of(value)
        problem = f"it has no {STATE_FILE}"
    except UNUSABLE as error:
        problem = repr(error)
    raise unreadable_checkpoint(run, step, problem)


def unreadable_checkpoint(run: RunDir, step: int, problem: str) -> RunError:
    """Returns the error for a checkpoint that no resume can continue from."""
    path = run.checkpoint(step)
    return RunError(
        f"{path}: unreadable checkpoint ({problem}); remove it to continue from the one before, then --resume"
    )
