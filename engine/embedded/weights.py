"""Loading a Hugging Face model directory (safetensors, sharded or not) into fused float32 tensors."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from engine.embedded.projection import Projection
from engine.errors import ConfigError
from engine.modeldir.files import read_object
from engine.modeldir.shape import DecoderShape


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerWeights:
    """One decoder layer; q, k, v and gate, up are stacked along the output."""

    input_norm: Tensor
    post_norm: Tensor
    query_key_norm: Tensor | None
    """`[heads + kv_heads, head_dim]` for Qwen3, else None."""
    qkv: Projection
    o: Projection
    gate_up: Projection
    down: Projection

    def projections(self) -> dict[str, Projection]:
        """The four fused maps by name."""
        return {"qkv": self.qkv, "o": self.o, "gate_up": self.gate_up, "down": self.down}


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelWeights:
    """Everything a forward pass reads; `embedding` and `head` are `[vocabulary, hidden]` and may be one tensor."""

    embedding: Tensor
    layers: list[LayerWeights]
    norm: Tensor
    head: Tensor

    @property
    def projection_bytes(self) -> int:
        """Bytes of all adaptable weights: what one merged adapter costs."""
        return sum(p.weight.numel() * 4 for layer in self.layers for p in layer.projections().values())


class _Tensors:
    """Named tensors over one or several safetensors files, read as float32 on demand."""

    def __init__(self, model: Path) -> None:
        index = model / "model.safetensors.index.json"
        if index.exists():
            names: dict[str, str] = read_object(index)["weight_map"]
            self._files = {name: model / file for name, file in names.items()}
            return
        path = model / "model.safetensors"
        if not path.exists():
            raise ConfigError(f"{model} holds neither model.safetensors nor its index")
        with _open(path) as file:
            self._files = dict.fromkeys(file.keys(), path)

    def optional(self, name: str) -> Tensor | None:
        path = self._files.get(name)
        if path is None:
            return None
        with _open(path) as file:
            tensor: Tensor = file.get_tensor(name)
        return tensor.to(torch.float32).contiguous()

    def __getitem__(self, name: str) -> Tensor:
        tensor = self.optional(name)
        if tensor is None:
            raise ConfigError(f"the model's safetensors lack the tensor {name}")
        return tensor


def _open(path: Path) -> safe_open:
    try:
        return safe_open(path, framework="pt")
    except (OSError, SafetensorError) as error:
        raise ConfigError(f"{path} is not a readable safetensors file: {error}") from error


def load_weights(model: Path, shape: DecoderShape) -> ModelWeights:
    """Read every weight of a model directory; ConfigError names a missing or ill-shaped tensor."""
    tensors = _Tensors(model)
    embedding = tensors["model.embed_tokens.weight"]
    if tuple(embedding.shape) != (shape.vocabulary, shape.hidden):
        raise ConfigError(f"{model}: embed_tokens is {tuple(embedding.shape)}, config.json says otherwise")
    return ModelWeights(
        embedding=embedding,
        layers=[_layer(tensors, f"model.layers.{i}.", shape) for i in range(shape.layers)],
        norm=tensors["model.norm.weight"],
        head=embedding if shape.tied else tensors["lm_head.weight"],
    )


def _layer(tensors: _Tensors, prefix: str, shape: DecoderShape) -> LayerWeights:
    norm = None
    if shape.query_key_norm:
        query = tensors[prefix + "self_attn.q_norm.weight"].expand(shape.heads, -1)
        key = tensors[prefix + "self_attn.k_norm.weight"].expand(shape.kv_heads, -1)
        norm = torch.cat((query, key))
    return LayerWeights(
        input_norm=tensors[prefix + "input_layernorm.weight"],
        post_norm=tensors[prefix + "post_attention_layernorm.weight"],
        query_key_norm=norm,
        qkv=_fused(tensors, [prefix + f"self_attn.{m}_proj" for m in "qkv"]),
        o=_fused(tensors, [prefix + "self_attn.o_proj"]),
        gate_up=_fused(tensors, [prefix + f"mlp.{m}_proj" for m in ("gate", "up")]),
        down=_fused(tensors, [prefix + "mlp.down_proj"]),
    )


def _fused(tensors: _Tensors, modules: list[str]) -> Projection:
    weights = [tensors[module + ".weight"] for module in modules]
    biases = [tensors.optional(module + ".bias") for module in modules]
    if all(bias is None for bias in biases):
        return Projection(torch.cat(weights), None)
    full = [w.new_zeros(w.shape[0]) if b is None else b for w, b in zip(weights, biases, strict=True)]
    return Projection(torch.cat(weights), torch.cat(full))
