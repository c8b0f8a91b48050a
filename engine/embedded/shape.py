"""What a `config.json` says about a decoder, and the refusal of every decoder that is not built here.

Served: full-attention `LlamaForCausalLM`, `Qwen2ForCausalLM` and `Qwen3ForCausalLM`, with default or llama3 rope.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import orjson

from engine.errors import ConfigError

ARCHITECTURES = ("LlamaForCausalLM", "Qwen2ForCausalLM", "Qwen3ForCausalLM")


@dataclass(frozen=True, slots=True, kw_only=True)
class DecoderShape:
    """Sizes of one decoder; `inverse_frequencies` has head_dim / 2 entries and holds any rope scaling already."""

    architecture: str
    layers: int
    hidden: int
    heads: int
    kv_heads: int
    head_dim: int
    mlp: int
    vocabulary: int
    context: int
    norm_eps: float
    query_key_norm: bool
    tied: bool
    inverse_frequencies: tuple[float, ...]

    @property
    def kv_bytes_per_token(self) -> int:
        """Bytes of float32 keys and values that one token holds over all layers."""
        return self.layers * 2 * self.kv_heads * self.head_dim * 4


def read_shape(model: Path) -> DecoderShape:
    """Read `config.json` of a model directory; ConfigError names what cannot be served."""
    config = read_json(model / "config.json")
    architecture = (config.get("architectures") or ["unnamed"])[0]
    if architecture not in ARCHITECTURES:
        served = ", ".join(ARCHITECTURES)
        raise ConfigError(f"{model}: architecture {architecture} is not served here; served: {served}")
    _refuse_unserved(model, config)
    heads = int(config["num_attention_heads"])
    head_dim = int(config.get("head_dim") or config["hidden_size"] // heads)
    return DecoderShape(
        architecture=architecture,
        layers=int(config["num_hidden_layers"]),
        hidden=int(config["hidden_size"]),
        heads=heads,
        kv_heads=int(config.get("num_key_value_heads") or heads),
        head_dim=head_dim,
        mlp=int(config["intermediate_size"]),
        vocabulary=int(config["vocab_size"]),
        context=int(config["max_position_embeddings"]),
        norm_eps=float(config.get("rms_norm_eps", 1e-6)),
        query_key_norm=architecture == "Qwen3ForCausalLM",
        tied=bool(config.get("tie_word_embeddings", False)),
        inverse_frequencies=_inverse_frequencies(model, config, head_dim),
    )


def read_json(path: Path) -> dict[str, Any]:
    """Read one JSON object; ConfigError when the file is missing or is something else."""
    try:
        value = orjson.loads(path.read_bytes())
    except OSError as error:
        raise ConfigError(f"{path} cannot be read: {error.strerror}") from error
    except orjson.JSONDecodeError as error:
        raise ConfigError(f"{path} is not JSON: {error}") from error
    if not isinstance(value, dict):
        raise ConfigError(f"{path} must hold a JSON object")
    return value


def _refuse_unserved(model: Path, config: dict[str, Any]) -> None:
    layer_types = set(config.get("layer_types") or ["full_attention"])
    refusals = {
        "sliding-window attention": bool(config.get("use_sliding_window")) or layer_types != {"full_attention"},
        f"activation {config.get('hidden_act')}": config.get("hidden_act", "silu") != "silu",
        "quantized weights": config.get("quantization_config") is not None,
        "partial rotary embeddings": _rope(config).get("partial_rotary_factor", 1.0) != 1.0,
    }
    for what, refused in refusals.items():
        if refused:
            raise ConfigError(f"{model}: {what} is not served here; use a full-attention SiLU model in plain weights")


def _rope(config: dict[str, Any]) -> dict[str, Any]:
    """The rope settings, whichever of the two spellings (transformers 4 or 5) the file uses."""
    return config.get("rope_parameters") or config.get("rope_scaling") or {}


def _inverse_frequencies(model: Path, config: dict[str, Any], head_dim: int) -> tuple[float, ...]:
    rope = _rope(config)
    theta = float(rope.get("rope_theta") or config.get("rope_theta") or 10_000.0)
    plain = tuple(theta ** (-2.0 * i / head_dim) for i in range(head_dim // 2))
    kind = rope.get("rope_type") or rope.get("type") or "default"
    if kind == "default":
        return plain
    if kind != "llama3":
        raise ConfigError(f"{model}: rope type {kind} is not served here; served: default, llama3")
    return tuple(_llama3(frequency, rope) for frequency in plain)


def _llama3(frequency: float, rope: dict[str, Any]) -> float:
    """Llama 3's rope scaling of one inverse frequency (long waves are slowed by `factor`, the middle is blended)."""
    low, high = float(rope["low_freq_factor"]), float(rope["high_freq_factor"])
    original, factor = float(rope["original_max_position_embeddings"]), float(rope["factor"])
    wavelength = 2 * math.pi / frequency
    if wavelength < original / high:
        return frequency
    if wavelength > original / low:
        return frequency / factor
    smooth = (original / wavelength - low) / (high - low)
    return (1 - smooth) * frequency / factor + smooth * frequency
