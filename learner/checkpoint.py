"""Checkpoints: everything that a restarted learner continues from, written before the version is published.

::

    learner/checkpoint-NNNNN/state.json            step, version, cursor, counters, the rows of that step
                             tensors.safetensors   adapter `p.NAME` as published, its float32 masters `w.NAME` where
                                                   that is rounded, Adam `m.NAME` and `v.NAME`, `rng`

The cursor is the end of the step's last group, so a resume neither repeats nor skips a group. The step's rows of
steps.jsonl and metrics.jsonl are in the checkpoint too: a kill between the files is repaired from it. The last two are
kept.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import orjson
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor

from engine.config.tree import Config
from engine.errors import RunError
from engine.rundir.layout import FORMAT, RunDir, read_json, remove_directory, write_directory
from learner.progress import Counters

KEPT = 2
_TENSORS, _STATE = "tensors.safetensors", "state.json"
_SCHEDULE_KEYS = {"max_staleness", "group_size", "groups_per_step"}
_FREE_KEYS = {"micro_batch_tokens", "threads", "ranks", "gpus", "recompute"}


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Checkpoint:
    """The state after a step (step 0: before the first)."""

    counters: Counters
    config_sha256: str
    published: Mapping[str, Any]
    """What meta.json of this version tells of the step."""
    step_row: Mapping[str, Any] | None
    """The step's row of steps.jsonl; None for step 0."""
    metrics_row: Mapping[str, float | int] | None
    """The step's row of metrics.jsonl; None for step 0."""
    adapter: Mapping[str, Tensor]
    moments: Mapping[str, Tensor]
    """`m.NAME` and `v.NAME`, and the masters `w.NAME` where the adapter is rounded."""
    rng: Tensor

    def write(self, run: RunDir) -> None:
        """Write it whole, then remove all but the last two."""
        step = self.counters.step
        state = {
            "format": FORMAT,
            "counters": self.counters.value(),
            "config_sha256": self.config_sha256,
            "published": self.published,
            "step_row": self.step_row,
            "metrics_row": self.metrics_row,
        }
        tensors = {**{f"p.{name}": tensor for name, tensor in self.adapter.items()}, **self.moments, "rng": self.rng}
        contiguous = {name: tensor.detach().contiguous() for name, tensor in sorted(tensors.items())}
        write_directory(_path(run, step), {_TENSORS: save(contiguous), _STATE: orjson.dumps(state)})
        for old in _steps(run)[:-KEPT]:
            remove_directory(_path(run, old))


def latest(run: RunDir) -> Checkpoint | None:
    """The newest checkpoint, or None before the first.

    Raises RunError naming the file if it cannot be read."""
    steps = _steps(run)
    if not steps:
        return None
    path = _path(run, steps[-1])
    try:
        tensors = load_file(path / _TENSORS)
        state = read_json(path / _STATE)
    except (SafetensorError, FileNotFoundError) as error:
        raise _unreadable(path) from error
    if state is None:
        raise _unreadable(path)
    return Checkpoint(
        counters=Counters.of(state["counters"]),
        config_sha256=state["config_sha256"],
        published=state["published"],
        step_row=state["step_row"],
        metrics_row=state["metrics_row"],
        adapter={name[2:]: tensor for name, tensor in tensors.items() if name.startswith("p.")},
        moments={name: tensor for name, tensor in tensors.items() if name.startswith(("m.", "v.", "w."))},
        rng=tensors["rng"],
    )


def config_sha256(config: Config) -> str:
    """Hash of the settings that a checkpoint depends on; what a resume may change is not in it."""
    learner = config.learner.model_dump(exclude=_FREE_KEYS)
    schedule = config.schedule.model_dump(include=_SCHEDULE_KEYS)
    relevant = [learner, schedule, config.model.path, config.run.seed]
    return hashlib.sha256(orjson.dumps(relevant, option=orjson.OPT_SORT_KEYS)).hexdigest()


def rng_state() -> Tensor:
    """[bytes] uint8 state of torch's CPU generator."""
    return torch.get_rng_state()


def _unreadable(path: Path) -> RunError:
    return RunError(f"{path}: unreadable checkpoint; remove it to continue from the one before, then --resume")


def _path(run: RunDir, step: int) -> Path:
    return run.learner / f"checkpoint-{step:05d}"


def _steps(run: RunDir) -> list[int]:
    return sorted(int(path.name[11:]) for path in run.learner.glob("checkpoint-*") if path.name[11:].isdigit())
