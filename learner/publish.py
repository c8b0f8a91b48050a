"""Publishing adapter versions: `adapters/vNNNNN/`, written whole, never rewritten.

::

    adapters/v00012/adapter_model.safetensors   the base's dtype, peft's names, sorted: equal weights, equal bytes
                    adapter_config.json         what peft and the servers read
                    meta.json                   engine.learnerdir.adapter: version, step, hashes, norms

Publishing comes after the checkpoint of the same step and is idempotent: the same version with the same hash is done
already; with another hash it is refused, because a server may hold the old one under that name.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any

import orjson
from safetensors.torch import save
from torch import Tensor

from engine.errors import RunError
from engine.learnerdir.adapter import AdapterMeta, read_published, write_adapter
from engine.rundir.layout import RunDir
from learner.model import ADAPTER_CONFIG, WEIGHTS, LoraPolicy


def publish(run: RunDir, policy: LoraPolicy, tensors: Mapping[str, Tensor], step: Mapping[str, Any]) -> bool:
    """Publish version `step["version"]`; False if it lies there already with the same content.

    `step` is what meta.json tells of the step: version, step, parent_version, cursor, max_abs, update_norm, loss.
    Raises RunError if the version exists with other content."""
    version = int(step["version"])
    weights = save({name: tensor.contiguous() for name, tensor in sorted(tensors.items())}, metadata={"format": "pt"})
    digest = hashlib.sha256(weights).hexdigest()
    target = run.adapter(version)
    existing = read_published(run, version)
    if existing is not None:
        if existing.sha256 != digest:
            raise RunError(
                f"{target}: version {version} is published with other content ({str(existing.sha256)[:12]}, "
                f"not {digest[:12]}); an adapter is never rewritten: start a new run from the last checkpoint"
            )
        return False
    meta = AdapterMeta(
        step=step,
        base={"base_model": str(policy.base_path), "base_config_sha256": policy.base_config_sha256()},
        dtype=str(next(iter(tensors.values())).dtype).removeprefix("torch."),
        rank=policy.lora.rank,
        alpha=policy.lora.alpha,
    )
    files = {
        WEIGHTS: weights,
        ADAPTER_CONFIG: orjson.dumps(policy.lora.config(str(policy.base_path)), option=orjson.OPT_INDENT_2),
    }
    write_adapter(run, version, files, meta.value(weights))
    return True
