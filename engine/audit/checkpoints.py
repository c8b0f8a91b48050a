"""Check on the learner's checkpoints: each is the step that it says, and its adapter is what was published."""

from __future__ import annotations

from pathlib import Path

from safetensors import SafetensorError, deserialize

from engine.audit.check import Finding, Recorded, named
from engine.rundir.layout import read_json
from engine.types import TaskGroup


class Checkpoints:
    """A resume continues from the newest checkpoint: what it holds and what was published must be one thing."""

    def __init__(self, recorded: Recorded) -> None:
        self._recorded = recorded
        self._cursors = {row["step"]: list(row["cursor"]) for row in recorded.steps}

    def see(self, tg: TaskGroup) -> None:
        """Nothing: this is about learner/checkpoint-*."""

    def finding(self) -> Finding:
        """Checkpoints that contradict steps.jsonl or the adapter of their version."""
        kind = self._recorded.config.learner.kind
        paths = sorted(self._recorded.run.learner.glob("checkpoint-[0-9]*")) if kind == "grpo" else []
        wrong = [f"{path.name} ({reason})" for path in paths if (reason := self._problem(path))]
        return Finding(
            name="checkpoints_contradicted",
            promise="a checkpoint is the step it says, and holds the adapter that was published",
            checked=f"{len(paths)} checkpoints" if kind == "grpo" else f"none: a {kind} learner keeps its own",
            violations=[named(wrong)] if wrong else [],
            count=len(wrong),
        )

    def _problem(self, path: Path) -> str:
        state, step = read_json(path / "state.json") or {}, int(path.name.rpartition("-")[2])
        counters = state.get("counters", {})
        if counters.get("step") != step:
            return f"says step {counters.get('step')}"
        if step in self._cursors and list(counters["cursor"]) != self._cursors[step]:
            return "another cursor than in steps.jsonl"
        published = self._recorded.run.adapter(counters["version"]) / "adapter_model.safetensors"
        if not published.exists():
            return ""
        try:
            held = {name.removeprefix("p."): data for name, data in _tensors(path / "tensors.safetensors").items()}
            return (
                "" if _tensors(published).items() <= held.items() else f"another adapter than {published.parent.name}"
            )
        except (OSError, SafetensorError) as error:
            return f"unreadable: {error}"


def _tensors(path: Path) -> dict[str, bytes]:
    """Bytes of each tensor."""
    rows = deserialize(path.read_bytes())  # type: ignore[no-untyped-call]  # it has no type upstream
    return {name: bytes(tensor["data"]) for name, tensor in rows}
