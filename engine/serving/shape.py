"""The sizes of a decoder, from its config.json: parameters, LoRA parameters, KV cache, activations."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from engine.chat.template import read_object
from engine.errors import ConfigError


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelShape:
    """A Llama, Qwen2 or Qwen3 decoder; docs/learner.md 4 has the letters h, q, kv, f, L, V."""

    layers: int
    hidden: int
    query: int
    """Heads x head size."""
    kv: int
    """Key (or value) heads x head size."""
    intermediate: int
    vocabulary: int
    tied: bool
    """Whether the head is the embedding."""
    context: int
    """Positions that the model knows."""

    @classmethod
    def read(cls, model: Path) -> ModelShape:
        """The shape of a model directory.

        Raises ConfigError that names the entry which config.json lacks."""
        config: dict[str, Any] = read_object(model / "config.json")
        try:
            heads, hidden = int(config["num_attention_heads"]), int(config["hidden_size"])
            head = int(config.get("head_dim") or hidden // heads)
            return cls(
                layers=int(config["num_hidden_layers"]),
                hidden=hidden,
                query=heads * head,
                kv=int(config.get("num_key_value_heads") or heads) * head,
                intermediate=int(config["intermediate_size"]),
                vocabulary=int(config["vocab_size"]),
                tied=bool(config.get("tie_word_embeddings", False)),
                context=int(config["max_position_embeddings"]),
            )
        except (KeyError, TypeError, ValueError, ZeroDivisionError) as error:
            raise ConfigError(f"{model / 'config.json'}: no usable sizes of a decoder in it: {error!r}") from error

    @property
    def parameters(self) -> int:
        """Weights, embeddings included."""
        attention = self.hidden * (2 * self.query + 2 * self.kv)
        layer = attention + 3 * self.hidden * self.intermediate + 2 * self.hidden
        return self.layers * layer + self.vocabulary * self.hidden * (1 if self.tied else 2)

    def lora_parameters(self, rank: int) -> int:
        """Trained parameters of an adapter over all seven projections."""
        sides = (
            *(self.hidden + self.query, self.hidden + self.kv, self.hidden + self.kv, self.query + self.hidden),
            *3 * (self.hidden + self.intermediate,),
        )
        return self.layers * rank * sum(sides)

    @property
    def kv_values(self) -> int:
        """Numbers in the KV cache per token."""
        return self.layers * 2 * self.kv

    def activations(self, *, recompute: bool) -> int:
        """Numbers that a training pass keeps per token: of every layer, or its input and one layer at a time."""
        layer = 6 * self.hidden + 3 * self.query + 4 * self.kv + 4 * self.intermediate
        return self.layers * self.hidden + layer if recompute else self.layers * layer


def weight_bytes(model: Path, shape: ModelShape) -> int:
    """What the weights of a model directory take as they are served, whatever their type; in bfloat16 if they are in no
    file that says so."""
    return sum(path.stat().st_size for path in model.glob("model*.safetensors")) or 2 * shape.parameters
