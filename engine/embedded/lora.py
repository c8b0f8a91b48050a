"""Reading a peft LoRA directory and fitting it to the decoder.

The same rules as SGLang where it has them (rank and modules are checked at load); what SGLang would ignore silently
(`use_rslora`, rank patterns, trained biases, `modules_to_save`) is refused, because it would be served wrongly. So is a
file that holds more or less than the configuration says: where a pair is missing, the base would answer.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from engine.embedded.projection import LowRank
from engine.embedded.weights import ModelWeights
from engine.errors import ConfigError
from engine.modeldir.files import read_object
from engine.modeldir.shape import TARGET_MODULES, DecoderShape, adapter_tensor

MERGE_LIMIT_BYTES = 64 << 20
"""Adapters are merged into a copy of the weights while one copy is at most this large."""

_FUSED = {"qkv": ("q", "k", "v"), "o": ("o",), "gate_up": ("gate", "up"), "down": ("down",)}
_REFUSED = (
    *("use_rslora", "use_dora", "rank_pattern", "alpha_pattern", "modules_to_save", "layers_to_transform"),
    *("exclude_modules", "layer_replication", "lora_bias", "trainable_token_indices", "target_parameters"),
)


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
    factors = _read_factors(path, _expected(config, shape))
    merge = weights.projection_bytes <= MERGE_LIMIT_BYTES
    changes: list[dict[str, Tensor | LowRank]] = []
    with torch.inference_mode():
        for index, layer in enumerate(weights.layers):
            change: dict[str, Tensor | LowRank] = {}
            for name, projection in layer.projections().items():
                pair = _fuse(factors, index, name, shape.projections, scale)
                if pair is not None:
                    change[name] = projection.merged(pair) if merge else pair
            changes.append(change)
    return Adapter(changes=changes)


def _read_config(path: Path, max_rank: int) -> dict[str, Any]:
    try:
        config = read_object(path / "adapter_config.json")
    except ConfigError as error:
        raise AdapterError(str(error)) from error
    rank, alpha = config.get("r"), config.get("lora_alpha")
    if config.get("peft_type") != "LORA" or not isinstance(rank, int) or rank < 1 or not isinstance(alpha, int | float):
        raise AdapterError(f"{path}: adapter_config.json does not describe a LoRA adapter (peft_type, r, lora_alpha)")
    if rank > max_rank:
        raise AdapterError(f"{path}: LoRA rank {rank} is larger than the server's --max-lora-rank {max_rank}")
    for key in _REFUSED:
        # layers_to_transform = 0 is the first layer, not nothing.
        if config.get(key) or (key == "layers_to_transform" and config.get(key) is not None):
            raise AdapterError(f"{path}: {key} is not served; publish a plain LoRA adapter")
    if config.get("bias", "none") != "none":
        raise AdapterError(f"{path}: trained biases are not served; set bias = none")
    known = list(TARGET_MODULES)
    targets = known if config.get("target_modules") == "all-linear" else config.get("target_modules")
    if not isinstance(targets, list) or not targets or any(t not in known for t in targets):
        raise AdapterError(f"{path}: target_modules = {targets!r} is not served; list some of {known}")
    return {**config, "target_modules": targets}


class Expected(NamedTuple):
    """What one tensor of the file must be."""

    layer: int
    module: str
    factor: str
    shape: tuple[int, int]


def _expected(config: dict[str, Any], shape: DecoderShape) -> dict[str, Expected]:
    """The tensors of an adapter by name: A and B of every target module in every layer."""
    rank, widths = config["r"], shape.projections
    found: dict[str, Expected] = {}
    for layer in range(shape.layers):
        for module in (target.removesuffix("_proj") for target in config["target_modules"]):
            out_width, in_width = widths[module]
            found[adapter_tensor(layer, module, "A")] = Expected(layer, module, "A", (rank, in_width))
            found[adapter_tensor(layer, module, "B")] = Expected(layer, module, "B", (out_width, rank))
    return found


Factors: TypeAlias = dict[tuple[int, str], dict[str, Tensor]]


def _read_factors(path: Path, expected: dict[str, Expected]) -> Factors:
    """All A and B of the file by layer and module; exactly what is expected."""
    file = path / "adapter_model.safetensors"
    try:
        tensors = load_file(file)
    except (OSError, SafetensorError) as error:
        raise AdapterError(f"{file} cannot be read: {error}") from error
    for name in sorted(expected.keys() ^ tensors.keys()):
        what = "is missing" if name in expected else "belongs to no target module of this model"
        raise AdapterError(f"{file}: tensor {name} {what}; adapter_config.json and the file must agree")
    factors: Factors = {}
    for name, (layer, module, factor, shape) in expected.items():
        tensor = tensors[name]
        if tuple(tensor.shape) != shape:
            raise AdapterError(f"{file}: {name} has shape {tuple(tensor.shape)}, this model needs {shape}")
        if not bool(torch.isfinite(tensor).all()):
            raise AdapterError(f"{file}: {name} holds values that are not finite")
        factors.setdefault((layer, module), {})[factor] = tensor.to(torch.float32)
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
