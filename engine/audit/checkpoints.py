"""Check on the learner's checkpoints: each is the step that it says, and its adapter is what was published."""

from __future__ import annotations

from pathlib import Path

from safetensors import SafetensorError, deserialize

from engine.audit.check import AuditFinding, RunRecords, named
from engine.errors import RunError
from engine.learnerdir.checkpoint import read_checkpoint
from engine.types import EpisodeGroup


class Checkpoints:
    """A resume continues from the newest checkpoint: what it holds and what was published must be one thing."""

    def __init__(self, recorded: RunRecords) -> None:
        self._recorded = recorded
        self._cursors = {row.step: row.cursor for row in recorded.steps}

    def see(self, group: EpisodeGroup) -> None:
        """Nothing: this is about learner/checkpoint-*."""

    def finding(self) -> AuditFinding:
        """Checkpoints that contradict steps.jsonl or the adapter of their version."""
        kind = self._recorded.config.learner.kind
        run = self._recorded.run
        steps = run.checkpoints() if kind == "grpo" else []
        wrong = [f"{run.checkpoint(step).name} ({reason})" for step in steps if (reason := self._problem(step))]
        return AuditFinding(
            name="checkpoints_contradicted",
            promise="a checkpoint is the step it says, and holds the adapter that was published",
            checked=f"{len(steps)} checkpoints" if kind == "grpo" else f"none: a {kind} learner keeps its own",
            violations=[named(wrong)] if wrong else [],
            count=len(wrong),
        )

    def _problem(self, step: int) -> str:
        run = self._recorded.run
        try:
            counters = read_checkpoint(run, step).counters
        except RunError as error:
            return str(error)
        if counters.step != step:
            return f"says step {counters.step}"
        if counters.cursor != self._cursors.get(step, counters.cursor):
            return "another cursor than in steps.jsonl"
        published = run.adapter(counters.version) / "adapter_model.safetensors"
        if not published.exists():
            return ""
        try:
            tensors = _tensors(run.checkpoint(step) / "tensors.safetensors")
            held = {name.removeprefix("p."): data for name, data in tensors.items()}
            same = _tensors(published).items() <= held.items()
        except (OSError, SafetensorError) as error:
            return f"unreadable: {error}"
        return "" if same else f"another adapter than {published.parent.name}"


def _tensors(path: Path) -> dict[str, bytes]:
    """Bytes of each tensor."""
    rows = deserialize(path.read_bytes())  # type: ignore[no-untyped-call]  # it has no type upstream
    return {name: bytes(tensor["data"]) for name, tensor in rows}
