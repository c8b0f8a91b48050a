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
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import orjson
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor

from engine.config.load import marks
from engine.config.tree import Config
from engine.errors import RunError
from engine.learnerdir.checkpoint import STATE_FILE, CheckpointState, read_checkpoint, unreadable_checkpoint
from engine.rundir.layout import RUN_FORMAT, RunDir, read_json, remove_directory, write_directory

KEPT = 2
_TENSORS = "tensors.safetensors"
_SCHEDULE_KEYS = {"max_staleness", "group_size", "groups_per_step"}
_FIRST_KEYS = {
    "kind", "pace_s", "rank", "alpha", "lr", "schedule", "warmup_steps", "advantage", "min_group_size", "clip_low",
    "clip_high", "ratio_cap", "grad_clip", "warm_start",
}  # fmt: skip
"""Keys of [learner] that are always hashed, as in every checkpoint that there is: this list stays as it is."""


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


def compared_settings(run: RunDir, config: Config) -> dict[str, Any]:
    """Returns the settings that a checkpoint depends on, by key; what a resume may change is not among them.

    A key that was added to [learner] after `_FIRST_KEYS` is among them only where it is not at its default, so that
    checkpoints from before it was added are continued. The model's path is the one that the run began with
    (manifest.json), because a model may be moved; that it is the same model is checked before a resume starts
    (engine.preflight.manifest)."""
    recorded = read_json(run.manifest) or {}
    return {
        **{f"learner.{name}": value for name, value in _learner_settings(config)},
        **{f"schedule.{name}": value for name, value in config.schedule.model_dump(include=_SCHEDULE_KEYS).items()},
        "model.path": recorded.get("model_path", config.model.path),
        "run.seed": config.run.seed,
    }


def _learner_settings(config: Config) -> Iterator[tuple[str, Any]]:
    for name, info in type(config.learner).model_fields.items():
        value = config.learner.model_dump(mode="json", include={name})[name]
        added = name not in _FIRST_KEYS
        if not (added and (marks(info)["resumable"] or value == info.default)):
            yield name, value


def settings_sha256(settings: Mapping[str, Any]) -> str:
    """Returns the hash of what `compared_settings` returns."""
    relevant = [_table("learner", settings), _table("schedule", settings), settings["model.path"], settings["run.seed"]]
    return hashlib.sha256(orjson.dumps(relevant, option=orjson.OPT_SORT_KEYS)).hexdigest()


def _table(table: str, settings: Mapping[str, Any]) -> dict[str, Any]:
    prefix = f"{table}."
    return {key.removeprefix(prefix): value for key, value in settings.items() if key.startswith(prefix)}


def require_same_settings(run: RunDir, state: CheckpointState, settings: Mapping[str, Any]) -> None:
    """Raises RunError, naming the keys where the checkpoint tells them, if it was made with other settings."""
    if state.config_sha256 == settings_sha256(settings):
        return
    before = state.settings
    changed = sorted(key for key in {*before, *settings} if _shown(before, key) != _shown(settings, key))
    named = "; ".join(f"{key} was {_shown(before, key)}, is {_shown(settings, key)}" for key in changed)
    told = f" ({named}); set them back in {run.config}, or" if before else ";"
    raise RunError(f"{run.learner}: its checkpoint was made with other settings{told} start a new run")


def _shown(settings: Mapping[str, Any], key: str) -> str:
    return repr(settings[key]) if key in settings else "its default"


def rng_state() -> Tensor:
    """[bytes] uint8 state of torch's CPU generator."""
    return torch.get_rng_state()
