"""Small recorded runs, written by the real stream writer: sound, unless a test changes something before `write`."""

import hashlib
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import Any

import anyio
import numpy as np
import orjson
from safetensors.numpy import save

from engine.audit.steps import recomputed
from engine.config.load import ASSETS, load
from engine.core.seams import ScoringRecord
from engine.learnerdir.checkpoint import CheckpointState
from engine.learnerdir.counters import LearnerCounters
from engine.packs.pack import load_pack
from engine.preflight.manifest import create
from engine.reward.rubric import RubricScorer
from engine.rundir.layout import RunDir, adapter_name, read_json, write_json
from engine.stream.segment import SegmentHeader
from engine.stream.writer import TrajectoryWriter
from engine.task import Task
from engine.telemetry import engine_metrics as keys
from engine.types import (
    Episode,
    EpisodeGroup,
    Event,
    EventKind,
    Outcome,
    Sampling,
    Source,
    Span,
    StopReason,
    Tokens,
    TurnTiming,
)

GROUP_SIZE, GROUPS_PER_STEP, STEPS = 4, 2, 3
SERVER = "http://127.0.0.1:1"
REQUEST_S, REQUEST_TOKENS = 0.2, 4


def small_pack(path: Path) -> Path:
    """A pack of six training and two held-out tasks of the tiny family."""
    path.write_bytes(_small_pack())
    return path


@cache
def _small_pack() -> bytes:
    """Read from all of them, which takes more than a second."""
    whole = load_pack(ASSETS / "packs" / "tiny.jsonl.zst")
    train = [task for task in whole.tasks if task.split == "train"][: GROUPS_PER_STEP * STEPS]
    heldout = [task for task in whole.tasks if task.split == "heldout"][:2]
    lines = [orjson.dumps({"format": 1, "pack": "small"})]
    for task in (*train, *heldout):
        tools = [{**tool.function, "outputs": tool.outputs, "effect": tool.effect} for tool in task.tools]
        plain = orjson.loads(orjson.dumps(task)) | {"tools": tools}
        lines.append(orjson.dumps({key: value for key, value in plain.items() if value is not None}))
    return b"\n".join(lines) + b"\n"


@dataclass
class RecordedRun:
    """A run that went well, until a test says otherwise."""

    run: RunDir
    groups: list[EpisodeGroup] = field(default_factory=list)
    evaluations: list[EpisodeGroup] = field(default_factory=list)
    steps: list[dict[str, Any]] = field(default_factory=list)
    swaps: list[dict[str, Any]] = field(default_factory=list)
    rows: list[dict[str, Any]] = field(default_factory=list)

    @classmethod
    def make(cls, base: Path, pack: Path) -> "RecordedRun":
        """Three steps of two groups of four episodes; version v samples what step v + 1 trains."""
        sets = [
            *(f"run.dir={base}", "run.name=recorded", f"tasks.pack={pack}", f"run.steps={STEPS}"),
            *(f"schedule.group_size={GROUP_SIZE}", f"schedule.groups_per_step={GROUPS_PER_STEP}"),
        ]
        made = cls(run=create(load("tiny", sets).config))
        tasks = {task.id: task for task in load_pack(made.run.pack).tasks}
        train = [task for task in tasks.values() if task.split == "train"]
        for position, task in enumerate(train):
            version = position // GROUPS_PER_STEP
            episodes = [
                episode(f"g{position:06d}.{index:02d}", task, version, asks=index % 2 == 1, at_s=position)
                for index in range(GROUP_SIZE)
            ]
            made.groups.append(group(f"g{position:06d}", position, Source.POLICY, episodes))
        heldout = [(index, task) for index, task in enumerate(tasks.values()) if task.split == "heldout"]
        for version in (0, STEPS):
            for index, task in heldout:
                id_ = f"e{version:05d}-{index:04d}"
                only = episode(f"{id_}.00", task, version, asks=version > 0, at_s=50)
                made.evaluations.append(group(id_, index, Source.EVAL, [only]))
        made._learn()
        return made

    def _learn(self) -> None:
        run_id = self.run.run_id
        for step in range(1, STEPS + 1):
            rows = [
                {
                    "id": group.id,
                    "advantages": advantages(group),
                    "staleness": step - 1 - group.oldest_version,
                    "tokens": 8,
                }
                for group in self.groups[(step - 1) * GROUPS_PER_STEP : step * GROUPS_PER_STEP]
            ]
            self.steps.append(
                {"step": step, "version": step, "cursor": [0, 0], "groups": rows, "dropped": {}}
                | {"staleness_tokens": {"0": 16}, "flushed": False}
            )
        for version in range(STEPS + 1):
            self.publish(version)
            at = {"adapter": adapter_name(run_id, version), "version": version, "ok": True, "server": SERVER}
            self.swaps.append({"event": "load", **at, "start_s": 100.0 + version, "end_s": 100.1 + version})
            self.swaps.append({"event": "flip", **at, "start_s": 100.1 + version, "end_s": 100.1 + version})
        counts = dict.fromkeys(
            (keys.EPISODES_LIVE, keys.WAIT_ADMISSION, keys.EPISODES_FINISHED, keys.TOKENS_SAMPLED), 0
        )
        for second, trained in enumerate((0, 2, 4, 6)):
            written = min(6, trained + 2)
            self.rows.append(
                {keys.RUN_S: float(second), keys.GROUPS_ADMITTED: written, keys.GROUPS_WRITTEN: written}
                | {keys.GROUPS_TRAINED: trained, keys.GROUPS_DROPPED: 0, **counts}
                | {keys.EPISODES_STARTED: written * GROUP_SIZE}
            )

    def publish(self, version: int) -> None:
        """An adapter directory whose hash is right."""
        path = self.run.adapter(version)
        path.mkdir()
        weights = save(adapter_tensors(version))
        (path / "adapter_model.safetensors").write_bytes(weights)
        write_json(path / "meta.json", {"version": version, "adapter_sha256": hashlib.sha256(weights).hexdigest()})

    def _checkpoint(self, step: int) -> None:
        """What the learner would resume from."""
        path = self.run.learner / f"checkpoint-{step:05d}"
        path.mkdir()
        held = {f"p.{name}": tensor for name, tensor in adapter_tensors(step).items()}
        (path / "tensors.safetensors").write_bytes(save({**held, "rng": np.zeros(4, np.uint8)}))
        write_state(path, step=step, version=step)

    def write(self) -> RunDir:
        """Write everything; returns the run."""
        run = self.run
        write_stream(run, run.trajectories, self.groups)
        write_stream(run, run.eval, self.evaluations)
        measured = [("heldout_before", 0), ("heldout_after", STEPS)]
        _lines(run.eval / "evaluations.jsonl", [evaluation(name, version) for name, version in measured])
        _lines(run.learner / "steps.jsonl", self.steps)
        _lines(run.swaps, self.swaps)
        _lines(run.metrics, self.rows)
        self._checkpoint(STEPS)
        progress = {"step": STEPS, "version": STEPS, "frames_read": len(self.groups), "trained_groups": 6}
        write_json(run.progress, progress | {"dropped": {"stale": 0}, "wait_s": 1.0, "state": "done"})
        history = [{"phase": "training", "start_s": 0.5}, {"phase": "heldout_after", "start_s": 3.0}]
        write_json(run.path / "phase.json", {"phase": "done", "history": history})
        return run


def write_state(checkpoint: Path, **counters: Any) -> None:
    """The state.json of a checkpoint with these counters."""
    state = CheckpointState(counters=LearnerCounters(**counters), trained=None)
    write_json(checkpoint / "state.json", state.value())


def adapter_tensors(version: int) -> dict[str, np.ndarray]:
    """The weights of a version."""
    return {"layers.0.lora_A.weight": np.full((2, 2), version, np.float32)}


def evaluation(name: str, version: int) -> dict[str, Any]:
    """A row of evaluations.jsonl."""
    parts = {"mean": 0.5 if version else 0.0, "ci95": 0.1, "F": 1.0, "N": 0.0, "I": 1.0 if version else 0.0}
    counts = {"tasks": 2, "episodes": 2, "masked": 0, "start_s": 0.0, "end_s": 0.4}
    return {"name": name, "version": version, "split": "heldout", **parts, **counts}


def episode(id_: str, task: Task, version: int, *, asks: bool, at_s: float) -> Episode:
    """An episode that asks for everything (reward 0.5) or does nothing (reward 0), in one request."""
    assert task.user is not None
    facts = tuple(task.user.facts)
    said = Event(number=0, turn=0, kind=EventKind.SAID, text="What is it?", revealed=facts)
    left = Event(number=int(asks), turn=int(asks), kind=EventKind.ANSWERED, text="Done.")
    reply = " ".join(f"The {name} is {fact.value}." for name, fact in task.user.facts.items())
    asked = [{"role": "assistant", "content": "<question>What is it?</question>"}, {"role": "user", "content": reply}]
    played = Episode(
        id=id_,
        task_id=task.id,
        seed=1,
        adapter=f"a-v{version:05d}",
        version=version,
        server=SERVER,
        messages=(
            {"role": "system", "content": task.rules},
            {"role": "user", "content": task.instruction},
            *(asked if asks else ()),
            {"role": "assistant", "content": "<answer>Done.</answer>"},
        ),
        events=(said, left) if asks else (left,),
        tokens=Tokens(
            ids=np.arange(10, 20, dtype=np.uint32),
            logprobs=np.full(REQUEST_TOKENS, -0.5, np.float32),
            spans=(Span(start=3, length=REQUEST_TOKENS, version=version),),
        ),
        stop=StopReason.ANSWER,
        outcome=Outcome.AGENT_FAIL,
        reward=None,
        final_state={},
        timings=(TurnTiming(turn=0, phase="policy", start_s=at_s, end_s=at_s + REQUEST_S),),
        turns=1 + asks,
    )
    return replace(played, reward=anyio.run(RubricScorer().score, ScoringRecord.of(task, played)))


def group(id_: str, position: int, source: Source, episodes: list[Episode]) -> EpisodeGroup:
    """A group of these episodes."""
    return EpisodeGroup(
        id=id_,
        position=position,
        task_id=episodes[0].task_id,
        source=source,
        sampling=Sampling(),
        episodes=tuple(episodes),
    )


def advantages(group: EpisodeGroup) -> list[float | None]:
    """What steps.jsonl says of a group, by the formula."""
    values = iter(recomputed([episode.reward.value for episode in group.episodes if episode.reward], "group_std"))
    return [None if episode.reward is None else next(values) for episode in group.episodes]


def write_stream(run: RunDir, directory: Path, groups: list[EpisodeGroup]) -> None:
    """The groups as the run's own stream in `directory`, in place of what is there."""
    for path in directory.iterdir():
        path.unlink()
    manifest = read_json(run.manifest)
    assert manifest is not None
    header = SegmentHeader(
        run_id=manifest["run_id"],
        model_revision=manifest["model_revision"],
        tokenizer_hash=manifest["tokenizer_sha256"],
        chat_template_hash=manifest["template_sha256"],
        vocab_size=manifest["vocab_size"],
        pack_hash=manifest["pack_sha256"],
    )
    anyio.run(_write, directory, header, groups)


async def _write(directory: Path, header: SegmentHeader, groups: list[EpisodeGroup]) -> None:
    writer = TrajectoryWriter(directory, header)
    async with anyio.create_task_group() as tg:
        await tg.start(writer.run)
        for written in groups:
            await writer.write(written)
        await writer.close()


def _lines(path: Path, rows: list[dict[str, Any]]) -> None:
    path.write_bytes(b"".join(orjson.dumps(row, option=orjson.OPT_APPEND_NEWLINE) for row in rows))
