"""Which GPUs serve and which train, checked before anything starts, with the memory that each will need.

Sizes come from config.json (engine.serving.shape); the formulas are those of LEARNER.md section 4, for the learner as
it is built (base in bfloat16). Only check_placement asks what this machine has.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from engine.config import Config
from engine.errors import ConfigError
from engine.serving.gpus import Gpu
from engine.serving.gpus import gpus as all_gpus
from engine.serving.shape import ModelShape

_MIB = 2**20
_HALF = 2
_OPTIMIZER_BYTES = 18
"""Of one LoRA parameter: master, gradient and two moments in float32, and the rounded copy of the forward pass."""
_ACTIVATION_MARGIN = 1.25
"""Over the formula, on an H200: 1.12 to 1.23 for 8B, 4B and 0.6B (`python -m bench learner_gpu`)."""
_HEAD_TILES = 3
_HEAD_TILE_MIB = 256
_WORKSPACE_MIB = 2_500
"""What CUDA, its graphs and a server's buffers take beside weights and cache, as an estimate."""
_CONTEXT_MIB = 1_000
"""The same of a learner."""
_SERVER_SHARE = 0.85
"""Of a GPU's memory that SGLang fills with weights and cache when it has the GPU to itself."""
_SPARE_SHARE = 0.03
"""Of a GPU that a server and a learner share, left free: neither allocator gives back all that it does not use."""
_LEAST_EPISODES = 4
"""Episodes of limits.tokens that a server's cache should hold at least."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Placement:
    """GPUs by index; both are empty on a machine without one."""

    servers: tuple[tuple[int, ...], ...]
    """Of each server, as many as tensor parallelism takes."""
    learner: tuple[int, ...]
    """One rank on each."""

    @property
    def shared(self) -> frozenset[int]:
        """GPUs that serve and train."""
        return frozenset(self.learner) & {gpu for server in self.servers for gpu in server}


@dataclass(frozen=True, slots=True, kw_only=True)
class Need:
    """What one process needs on one GPU, in MiB."""

    gpu: int
    who: str
    parts: Mapping[str, float]

    @property
    def mib(self) -> float:
        """All of it."""
        return sum(self.parts.values())


def without_gpu(config: Config, gpus: Sequence[Gpu]) -> bool:
    """Whether the servers that a run starts compute on the CPU."""
    device = config.policy.device if config.policy.launch == "sglang" else "cpu"
    return device == "cpu" or (device == "auto" and not gpus)


def place(config: Config, gpus: Sequence[Gpu]) -> Placement:
    """Who gets which GPU: what the configuration names, or for the servers whatever does not train.

    Raises ConfigError that names the key and the GPUs there are."""
    there, learner = {gpu.index for gpu in gpus}, tuple(config.learner.gpus)
    free = tuple(sorted(there - set(learner)))
    count = 0 if without_gpu(config, gpus) else config.started_servers
    serving = (config.policy.gpus or free or learner) if count else ()
    for key, wanted in (("policy.gpus", serving), ("learner.gpus", learner)):
        if missing := sorted(set(wanted) - there):
            raise ConfigError(f"{key}: there is no GPU {missing[0]} here; nvidia-smi shows {sorted(there) or 'none'}")
        if len(set(wanted)) != len(wanted):
            raise ConfigError(f"{key} = {list(wanted)} names a GPU twice")
    width = config.policy.tensor_parallel
    if width * count > len(serving):
        raise ConfigError(
            f"policy.servers = {count} with policy.tensor_parallel = {width} need {width * count} GPUs, and "
            f"{len(serving)} can serve ({list(serving)}): lower one of them, or name more in policy.gpus"
        )
    servers = tuple(serving[first * width : (first + 1) * width] for first in range(count))
    return Placement(servers=servers, learner=learner)


def check_placement(config: Config, model: Path) -> None:
    """Raise ConfigError if this machine lacks GPUs that the configuration wants, or their memory is too small."""
    if not config.learner.gpus and config.policy.launch != "sglang":
        return
    here = all_gpus()
    needs(config, place(config, here), ModelShape.read(model), here)


def memory_share(config: Config, placement: Placement, shape: ModelShape, gpus: Sequence[Gpu]) -> float | None:
    """SGLang's --mem-fraction-static, or None where it may choose: set, or what a learner beside it leaves."""
    if config.policy.memory_fraction != "auto":
        return config.policy.memory_fraction
    if not placement.shared:
        return None
    total = min(gpu.total_mib for gpu in gpus if gpu.index in placement.shared)
    left = (1 - _SPARE_SHARE) * total - _learner(config, shape, 0).mib - _WORKSPACE_MIB
    return max(0.0, math.floor(100 * left / total) / 100)


def needs(config: Config, placement: Placement, shape: ModelShape, gpus: Sequence[Gpu]) -> list[Need]:
    """What every process needs on every GPU.

    Raises ConfigError, with the numbers, if it cannot fit."""
    totals = {gpu.index: gpu.total_mib for gpu in gpus}
    share = memory_share(config, placement, shape, gpus) or _SERVER_SHARE
    found = [_learner(config, shape, gpu) for gpu in placement.learner]
    for number, members in enumerate(placement.servers):
        found += [_server(config, shape, gpu, number, share * totals[gpu]) for gpu in members]
    for gpu, total in totals.items():
        here = [need for need in found if need.gpu == gpu]
        if sum(need.mib for need in here) > total:
            told = "; ".join(f"{need.who} {need.mib:,.0f} MiB ({_told(need)})" for need in here)
            raise ConfigError(f"GPU {gpu} has {total:,} MiB, and this would need more: {told}. {_REMEDY}")
    return found


_REMEDY = (
    "Set learner.recompute = true, lower learner.micro_batch_tokens, limits.tokens or policy.memory_fraction, raise "
    "policy.tensor_parallel, or give learner and servers GPUs of their own"
)


def _learner(config: Config, shape: ModelShape, gpu: int) -> Need:
    lora, kept = shape.lora_parameters(config.learner.rank), shape.activations(recompute=config.learner.recompute)
    parts = {
        "weights": shape.parameters * _HALF / _MIB,
        "adapter and Adam": lora * _OPTIMIZER_BYTES / _MIB,
        "activations": _ACTIVATION_MARGIN * kept * _HALF * config.learner.micro_batch_tokens / _MIB,
        "head": float(_HEAD_TILES * _HEAD_TILE_MIB),
        "CUDA": float(_CONTEXT_MIB),
    }
    return Need(gpu=gpu, who="learner", parts=parts)


def _server(config: Config, shape: ModelShape, gpu: int, number: int, static_mib: float) -> Need:
    width, slots = config.policy.tensor_parallel, config.adapter_slots
    weights = shape.parameters * _HALF / width / _MIB
    adapters = slots * shape.lora_parameters(config.learner.rank) * _HALF / width / _MIB
    per_token = shape.kv_values * _HALF / width / _MIB
    cache = static_mib - weights - adapters
    if config.policy.kv_tokens != "auto":
        cache = min(cache, config.policy.kv_tokens * per_token)
    least = _LEAST_EPISODES * config.limits.tokens * per_token
    if cache < least:
        raise ConfigError(
            f"server-{number} on GPU {gpu}: of the {static_mib:,.0f} MiB that it may fill, weights take {weights:,.0f} "
            f"and {slots} adapters {adapters:,.0f}, which leaves {max(0.0, cache):,.0f} MiB of KV cache; "
            f"{_LEAST_EPISODES} episodes of limits.tokens = {config.limits.tokens} need {least:,.0f}. {_REMEDY}"
        )
    parts = {"weights": weights, "adapters": adapters, "KV cache": cache, "CUDA": float(_WORKSPACE_MIB)}
    return Need(gpu=gpu, who=f"server-{number}", parts=parts)


def _told(need: Need) -> str:
    return ", ".join(f"{name} {mib:,.0f}" for name, mib in need.parts.items())
