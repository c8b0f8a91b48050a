"""The GPU memory that each process of a run will need, checked before anything starts.

Sizes come from config.json (engine.modeldir.shape); the formulas are those of docs/learner.md 4, for the learner as
it is built (base in bfloat16). Only check_placement asks what this machine has. SGLang takes its share of what is free
when it starts: beside another process it fills less than is told here, never more.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from engine.config.endpoints import SglangSection
from engine.config.tree import Config
from engine.errors import ConfigError
from engine.modeldir.shape import DecoderShape
from engine.serving.gpus import Gpu
from engine.serving.gpus import gpus as all_gpus
from engine.serving.placement import Placement, place

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
_REMEDY = (
    "Set learner.recompute = true, lower learner.micro_batch_tokens, limits.tokens or policy.memory_fraction, raise "
    "policy.tensor_parallel, or give learner and servers GPUs of their own"
)
_ENDPOINT_REMEDY = (
    "Lower endpoints.{0}.context_tokens, raise endpoints.{0}.memory_fraction or endpoints.{0}.tensor_parallel, name a "
    "smaller model, or give it GPUs of its own"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Need:
    """What one process needs on one GPU, in MiB."""

    gpu: int
    who: str
    parts: Mapping[str, float]
    endpoint: str = ""
    """The endpoint, if it is the server of one."""
    cached_tokens: float = 0.0
    """Tokens that its server's KV cache holds."""

    @property
    def mib(self) -> float:
        """All of it."""
        return sum(self.parts.values())


def check_placement(config: Config) -> None:
    """Raise ConfigError if this machine lacks GPUs that the configuration wants, or their memory is too small.

    The models of `config` are directories (engine.serving.models.find_models)."""
    if not config.learner.gpus and config.policy.launch != "sglang" and not config.started_endpoints:
        return
    here = all_gpus()
    needs(config, place(config, here), DecoderShape.read(Path(config.model.path)), here)


def memory_share(
    config: Config, section: SglangSection, members: Sequence[int], shape: DecoderShape, gpus: Sequence[Gpu]
) -> float | None:
    """--mem-fraction-static of an SGLang on `members`, or None where it may choose: set, or what a learner leaves.

    `shape` is that of the policy's model, which the learner trains."""
    if section.memory_fraction != "auto":
        return section.memory_fraction
    shared = set(members) & set(config.learner.gpus)
    if not shared:
        return None
    total = min(gpu.total_mib for gpu in gpus if gpu.index in shared)
    left = (1 - _SPARE_SHARE) * total - _learner(config, shape, 0).mib - _WORKSPACE_MIB
    return max(0.0, math.floor(100 * left / total) / 100)


def needs(config: Config, placement: Placement, shape: DecoderShape, gpus: Sequence[Gpu]) -> list[Need]:
    """What every process needs on every GPU; `shape` is that of the policy's model.

    Raises ConfigError, with the numbers, if it cannot fit."""
    totals = {gpu.index: gpu.total_mib for gpu in gpus}

    def filled(section: SglangSection, members: Sequence[int]) -> Iterator[tuple[int, float]]:
        # A learner that leaves nothing is told below, with its numbers.
        share = memory_share(config, section, members, shape, gpus) or _SERVER_SHARE
        return ((gpu, share * totals[gpu]) for gpu in members)

    found = [_learner(config, shape, gpu) for gpu in placement.learner]
    for number, members in enumerate(placement.servers):
        found += [_server(config, shape, gpu, number, mib) for gpu, mib in filled(config.policy, members)]
    for name, members in placement.endpoints.items():
        found += [_endpoint(config, name, gpu, mib) for gpu, mib in filled(config.endpoints[name], members)]
    for gpu, total in totals.items():
        here = [need for need in found if need.gpu == gpu]
        if sum(need.mib for need in here) > total:
            told = "; ".join(f"{need.who} {need.mib:,.0f} MiB ({_told(need)})" for need in here)
            lower = (f"; lower endpoints.{name}.memory_fraction" for name in placement.on(gpu))
            raise ConfigError(
                f"GPU {gpu} has {total:,} MiB, and this would need more: {told}. {_REMEDY}{''.join(lower)}"
            )
    return found


def _learner(config: Config, shape: DecoderShape, gpu: int) -> Need:
    lora, kept = shape.lora_parameters(config.learner.rank), shape.activations(recompute=config.learner.recompute)
    parts = {
        "weights": shape.parameters * _HALF / _MIB,
        "adapter and Adam": lora * _OPTIMIZER_BYTES / _MIB,
        "activations": _ACTIVATION_MARGIN * kept * _HALF * config.learner.micro_batch_tokens / _MIB,
        "head": float(_HEAD_TILES * _HEAD_TILE_MIB),
        "CUDA": float(_CONTEXT_MIB),
    }
    return Need(gpu=gpu, who="learner", parts=parts)


def _server(config: Config, shape: DecoderShape, gpu: int, number: int, static_mib: float) -> Need:
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
    return Need(gpu=gpu, who=f"server-{number}", parts=parts, cached_tokens=cache / per_token)


def _endpoint(config: Config, name: str, gpu: int, static_mib: float) -> Need:
    endpoint = config.endpoints[name]
    model, width = Path(endpoint.model), endpoint.tensor_parallel
    shape = DecoderShape.read(model)
    weights = _weight_bytes(model, shape) / width / _MIB
    per_token = shape.kv_values * _HALF / width / _MIB
    cache, tokens = static_mib - weights, min(endpoint.context_tokens, shape.context)
    # How many calls it decodes together is a matter of speed; one has to fit.
    if cache < tokens * per_token:
        raise ConfigError(
            f"endpoint-{name} on GPU {gpu}: of the {static_mib:,.0f} MiB that it may fill, weights take "
            f"{weights:,.0f}, which leaves {max(0.0, cache):,.0f} MiB of KV cache; one call of {tokens:,} tokens "
            f"(endpoints.{name}.context_tokens) needs {tokens * per_token:,.0f}. {_ENDPOINT_REMEDY.format(name)}"
        )
    parts = {"weights": weights, "KV cache": cache, "CUDA": float(_WORKSPACE_MIB)}
    return Need(gpu=gpu, who=f"endpoint-{name}", parts=parts, endpoint=name, cached_tokens=cache / per_token)


def _weight_bytes(model: Path, shape: DecoderShape) -> int:
    """What the weights of a model directory take as they are served, whatever their type; in bfloat16 if they are in no
    file that says so."""
    return sum(path.stat().st_size for path in model.glob("model*.safetensors")) or _HALF * shape.parameters


def _told(need: Need) -> str:
    return ", ".join(f"{name} {mib:,.0f}" for name, mib in need.parts.items())
