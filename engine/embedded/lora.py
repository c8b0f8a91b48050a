"""Reading a peft LoRA directory and fitting it to the decoder.

The same rules as SGLang where it has them (rank and modules are checked at load); what SGLang would ignore silently
(`use_rslora`, rank patterns, trained biases, `modules_to_save`) is refused, because it would be served wrongly.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from engine.embedded.projection import LowRank
from engine.embedded.shape import DecoderShape, read_json
from engine.embedded.weights import ModelWeights
from engine.errors import ConfigError

MERGE_LIMIT_BYTES = 64 << 20
"""Adapters are merged into a copy of the weights while one copy is at most this large."""

_KEY = re.compile(
    r"base_model\.model\.model\.layers\.(\d+)\.(?:self_attn|mlp)\.([a-z]+)_proj\.lora_([AB])\.weight", re.ASCII
)
_FUSED = {"qkv": ("q", "k", "v"), "o": ("o",), "gate_up": ("gate", "up"), "down": ("down",)}
_MODULES = {module for modules in _FUSED.values() for module in modules}


class AdapterError(ConfigError):
    """An adapter directory that cannot be served; HTTP answers 400 with this message."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Adapter:
    """One loaded adapter: per layer, fused projection name → merged weight or scaled low-rank pair."""

    changes: list[dict[str, Tensor | LowRank]]


def read_adapter(path: Path, shape: DecoderShape, weights: ModelWeights, max_rank: int) -> Adapter:
    """Read `adapter_config.json` and `adapter_model.safetensors`; AdapterError names what does not fit."""
    config = _read_config(path, max_rank)
    rank = int(config["r"])
    scale = float(config["lora_alpha"]) / rank
    factors = _read_factors(path, rank, shape)
    merge = weights.projection_bytes <= MERGE_LIMIT_BYTES
    changes: list[dict[str, Tensor | LowRank]] = []
    with torch.inference_mode():
        for index, layer in enumerate(weights.layers):
            change: dict[str, Tensor | LowRank] = {}
            for name, projection in layer.projections().items():
                pair = _fuse(factors, index, name, _widths(shape), scale)
                if pair is not None:
                    change[name] = projection.merged(pair) if merge else pair
            changes.append(change)
    return Adapter(changes=changes)


def _read_config(path: Path, max_rank: int) -> dict[str, Any]:
    try:
        config = read_json(path / "adapter_config.json")
    except ConfigError as error:
        raise AdapterError(str(error)) from error
    rank, alpha = config.get("r"), config.get("lora_alpha")
    if config.get("peft_type") != "LORA" or not isinstance(rank, int) or rank < 1 or not isinstance(alpha, int | float):
        raise AdapterError(f"{path}: adapter_config.json does not describe a LoRA adapter (peft_type, r, lora_alpha)")
    if rank > max_rank:
        raise AdapterError(f"{path}: LoRA rank {rank} is larger than the server's --max-lora-rank {max_rank}")
    for key in ("use_rslora", "use_dora", "rank_pattern", "alpha_pattern", "modules_to_save"):
        if config.get(key):
            raise AdapterError(f"{path}: {key} is not served; publish a plain LoRA adapter")
    if config.get("bias", "none") != "none":
        raise AdapterError(f"{path}: trained biases are not served; set bias = none")
    targets = config.get("target_modules") or []
    unknown = [] if isinstance(targets, str) else [t for t in targets if t.removesuffix("_proj") not in _MODULES]
    if unknown:
        raise AdapterError(f"{path}: target modules {unknown} are not among {sorted(m + '_proj' for m in _MODULES)}")
    return config


def _widths(shape: DecoderShape) -> dict[str, tuple[int, int]]:
    """Output and input width of every adaptable module."""
    query, key = shape.heads * shape.head_dim, shape.kv_heads * shape.head_dim
    return {
        "q": (query, shape.hidden),
        "k": (key, shape.hidden),
        "v": (key, shape.hidden),
        "o": (shape.hidden, query),
        "gate": (shape.mlp, shape.hidden),
        "up": (shape.mlp, shape.hidden),
        "down": (shape.hidden, shape.mlp),
    }


Factors: TypeAlias = dict[tuple[int, str], dict[str, Tensor]]


def _read_factors(path: Path, rank: int, shape: DecoderShape) -> Factors:
    """All A and B of the file by layer and module, checked against the model's shapes."""
    file = path / "adapter_model.safetensors"
    try:
        tensors = load_file(file)
    except (OSError, SafetensorError) as error:
        raise AdapterError(f"{file} cannot be read: {error}") from error
    widths = _widths(shape)
    factors: Factors = {}
    for name, tensor in tensors.items():
        match = _KEY.fullmatch(name)
        if match is None or match[2] not in widths or int(match[1]) >= shape.layers:
            raise AdapterError(f"{file}: tensor {name} does not belong to this model's adaptable modules")
        out_width, in_width = widths[match[2]]
        expected = (rank, in_width) if match[3] == "A" else (out_width, rank)
        if tuple(tensor.shape) != expected:
            raise AdapterError(f"{file}: {name} has shape {tuple(tensor.shape)}, this model needs {expected}")
        if not bool(torch.isfinite(tensor).all()):
            raise AdapterError(f"{file}: {name} holds values that are not finite")
        factors.setdefault((int(match[1]), match[2]), {})[match[3]] = tensor.to(torch.float32)
    for (layer, module), pair in factors.items():
        if pair.keys() != {"A", "B"}:
            raise AdapterError(f"{file}: layer {layer} {module}_proj needs both lora_A and lora_B")
    return factors


def _fuse(factors: Factors, layer: int, name: str, widths: dict[str, tuple[int, int]], scale: float) -> LowRank | None:
    """Stack the pairs of a fused projection: the A below one another, the B as diagonal blocks."""
    pairs = [(module, factors.get((layer, module))) for module in _FUSED[name]]
    if all(pair is None for _, pair in pairs):
        return None
    a = torch.cat([pair["A"] for _, pair in pairs if pair is not None])
    blocks, used = [], 0
    for module, pair in pairs:
        block = a.new_zeros(widths[module][0], a.shape[0])
        if pair is not None:
            rank = pair["B"].shape[1]
            block[:, used : used + rank] = pair["B"] * scale
            used += rank
        blocks.append(block)
    return LowRank(a=a.contiguous(), b=torch.cat(blocks))
