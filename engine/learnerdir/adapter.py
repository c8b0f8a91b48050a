"""adapters/vNNNNN/meta.json: what a published adapter came from, and by which hash its weights are known."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import orjson

from engine.modeldir.shape import TARGET_MODULES
from engine.rundir.layout import RUN_FORMAT, RunDir, read_json, write_directory

META_FILE = "meta.json"


@dataclass(frozen=True, slots=True, kw_only=True)
class PublishedAdapter:
    """What meta.json says of an adapter that is published; what it does not say is None."""

    version: int | None
    sha256: str | None
    """Of its weights' file."""


@dataclass(frozen=True, slots=True, kw_only=True)
class AdapterMeta:
    """What a learner tells of an adapter beside its weights."""

    step: Mapping[str, Any]
    """What meta.json tells of its step: version, step, parent_version, cursor; of a trained one norms and loss too."""
    base: Mapping[str, str]
    """What it tells of the base: base_model, and base_config_sha256 where that was read."""
    dtype: str
    rank: int
    alpha: int

    def value(self, weights: bytes) -> dict[str, Any]:
        """Returns it as JSON, as the learner writes it now."""
        return {
            **self.step,
            **self.base,
            "adapter_sha256": hashlib.sha256(weights).hexdigest(),
            "bytes": len(weights),
            "dtype": self.dtype,
            "r": self.rank,
            "alpha": self.alpha,
            "target_modules": TARGET_MODULES,
            "created_at": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        }

    def simulated_value(self, weights: bytes) -> dict[str, Any]:
        """Returns it as JSON, as the simulated learner writes it: the cursor stands later, and it says what it is."""
        value = self.value(weights)
        cursor, created_at = value.pop("cursor"), value.pop("created_at")
        return {**value, "cursor": cursor, "created_at": created_at, "simulated": True}


def read_published(run: RunDir, version: int) -> PublishedAdapter | None:
    """Returns what is said of a published version, or None for one that is not published.

    Raises RunError for a meta.json that is not JSON or has another format."""
    value = read_json(run.adapter(version) / META_FILE)
    return None if value is None else PublishedAdapter(version=value.get("version"), sha256=value.get("adapter_sha256"))


def write_adapter(run: RunDir, version: int, files: Mapping[str, bytes], meta: Mapping[str, Any]) -> None:
    """Publishes a version whole: its files and its meta.json.

    Raises RunError if the disk does not take it."""
    content = orjson.dumps({"format": RUN_FORMAT, **meta}, option=orjson.OPT_INDENT_2)
    write_directory(run.adapter(version), {**files, META_FILE: content})


def is_published(run: RunDir, version: int) -> bool:
    """Returns whether a version can be loaded; its directory appears whole."""
    return (run.adapter(version) / META_FILE).exists()
