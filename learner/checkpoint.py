"""Checkpoints: everything that a restarted learner continues from, written before the version is published.

::

    learner/checkpoint-NNNNN/state.json            engine.learnerdir.checkpoint: counters, the rows of that step
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

import orjson
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor

from engine.config.tree import Config
from engine.learnerdir.checkpoint import STATE_FILE, CheckpointState, read_checkpoint, unreadable_checkpoint
from engine.rundir.layout import RUN_FORMAT, RunDir, remove_directory, write_directory

KEPT = 2
_TENSORS = "tensors.safetensors"
_SCHEDULE_KEYS = {"max_staleness", "group_size", "groups_per_step"}
_FREE_KEYS = {"micro_batch_tokens", "threads", "ranks", "gpus", "recompute"}


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Checkpoint:
    """The state after a step (step 0: before the first)."""

    state: CheckpointState
    adapter: Mapping[str, Tensor]
    moments: Mapping[str, Tensor]
    """`m.NAME` and `v.NAME`, and the masters `w.NAME` where the adapter is rounded."""
    rng: Tensor

    def write(self, run: RunDir) -> None:
        """Write it whole, then remove all but the last two."""
        state = {"format": RUN_FORMAT, **self.state.value()}
        tensors = {**{f"p.{name}": tensor for name, tensor in self.adapter.items()}, **self.moments, "rng": self.rng}
        contiguous = {name: tensor.detach().contiguous() for name, tensor in sorted(tensors.items())}
        files = {_TENSORS: save(contiguous), STATE_FILE: orjson.dumps(state)}
        write_directory(run.checkpoint(self.state.counters.step), files)
        for old in run.checkpoints()[:-KEPT]:
            remove_directory(run.checkpoint(old))


def latest_checkpoint(run: RunDir) -> Checkpoint | None:
    """The newest checkpoint, or None before the first.

    Raises RunError naming the file if it cannot be read."""
    steps = run.checkpoints()
    if not steps:
        return None
    step = steps[-1]
    state = read_checkpoint(run, step)
    try:
        tensors = load_file(run.checkpoint(step) / _TENSORS)
    except (SafetensorError, FileNotFoundError) as error:
        raise unreadable_checkpoint(run, step, f"{_TENSORS}: {error}") from error
    return Checkpoint(
        state=state,
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
