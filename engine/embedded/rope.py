"""The rotary embedding of a decoder: its inverse frequencies, with default or llama3 scaling."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from engine.errors import ConfigError


def inverse_frequencies(model: Path, config: Mapping[str, Any], head_dim: int) -> tuple[float, ...]:
    """Returns head_dim / 2 inverse frequencies, any scaling applied, from a model's config.json.

    Raises ConfigError for a rope that is not computed here."""
    rope = config.get("rope_parameters") or config.get("rope_scaling") or {}  # transformers 5, and 4
    if rope.get("partial_rotary_factor", 1.0) != 1.0:
        raise ConfigError(f"{model}: partial rotary embeddings cannot be served here; use a plain decoder")
    theta = float(rope.get("rope_theta") or config.get("rope_theta") or 10_000.0)
    plain = tuple(theta ** (-2.0 * i / head_dim) for i in range(head_dim // 2))
    kind = rope.get("rope_type") or rope.get("type") or "default"
    if kind == "default":
        return plain
    if kind != "llama3":
        raise ConfigError(f"{model}: rope type {kind} cannot be served here; these can: default, llama3")
    return tuple(_llama3(frequency, rope) for frequency in plain)


def _llama3(frequency: float, rope: Mapping[str, Any]) -> float:
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
