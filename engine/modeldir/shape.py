"""The shape of a decoder, from its config.json, and the architectures that are trained and served by our own code.

docs/learner.md 4 has the letters of the formulas: h hidden, q query, kv, f intermediate, L layers, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from engine.errors import ConfigError
from engine.modeldir.files import MODEL_CONFIG, read_config

ARCHITECTURES = ("LlamaForCausalLM", "Qwen2ForCausalLM", "Qwen3ForCausalLM")
"""Decoders that the learner trains and the embedded server computes; SGLang serves others too."""
TARGET_MODULES = ("down_proj", "gate_proj", "k_proj", "o_proj", "q_proj", "up_proj", "v_proj")
"""The projections of a layer that an adapter changes. All seven, always: servers stack q/k/v and gate/up, and refuse or
drop parts of a stack."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DecoderShape:
    """The sizes of a Llama, Qwen2 or Qwen3 decoder, and what follows from them."""

    architecture: str
    layers: int
    hidden: int
    heads: int
    kv_heads: int
    head_dim: int
    intermediate: int
    vocabulary: int
    context: int
    """Positions that the model knows."""
    norm_eps: float
    tied: bool
    """Whether the head is the embedding."""

    @classmethod
    def read(cls, model: Path) -> DecoderShape:
        """Reads the shape of a model directory, whatever its architecture.

        Raises ConfigError that names the entry which config.json lacks."""
        config = read_config(model)
        try:
            heads, hidden = int(config["num_attention_heads"]), int(config["hidden_size"])
            return cls(
                architecture=_architecture(config),
                layers=int(config["num_hidden_layers"]),
                hidden=hidden,
                heads=heads,
                kv_heads=int(config.get("num_key_value_heads") or heads),
                head_dim=int(config.get("head_dim") or hidden // heads),
                intermediate=int(config["intermediate_size"]),
                vocabulary=int(config["vocab_size"]),
                context=int(config["max_position_embeddings"]),
                norm_eps=float(config.get("rms_norm_eps", 1e-6)),
                tied=bool(config.get("tie_word_embeddings", False)),
            )
        except (KeyError, TypeError, ValueError, ZeroDivisionError) as error:
            raise ConfigError(f"{model / MODEL_CONFIG}: no usable sizes of a decoder in it: {error!r}") from error

    @property
    def query(self) -> int:
        """Heads x head size."""
        return self.heads * self.head_dim

    @property
    def kv(self) -> int:
        """Key (or value) heads x head size."""
        return self.kv_heads * self.head_dim

    @property
    def query_key_norm(self) -> bool:
        """Whether every head's query and key are normed before rope."""
        return self.architecture == "Qwen3ForCausalLM"

    @property
    def projections(self) -> dict[str, tuple[int, int]]:
        """Output and input width of every projection of a layer, by its name without `_proj`."""
        return {
            "q": (self.query, self.hidden),
            "k": (self.kv, self.hidden),
            "v": (self.kv, self.hidden),
            "o": (self.hidden, self.query),
            "gate": (self.intermediate, self.hidden),
            "up": (self.intermediate, self.hidden),
            "down": (self.hidden, self.intermediate),
        }

    @property
    def parameters(self) -> int:
        """Weights, embeddings included."""
        layer = sum(outputs * inputs for outputs, inputs in self.projections.values()) + 2 * self.hidden
        return self.layers * layer + self.vocabulary * self.hidden * (1 if self.tied else 2)

    def lora_parameters(self, rank: int) -> int:
        """Returns how many parameters an adapter over all seven projections trains."""
        return self.layers * rank * sum(outputs + inputs for outputs, inputs in self.projections.values())

    @property
    def kv_values(self) -> int:
        """Numbers in the KV cache per token."""
        return self.layers * 2 * self.kv

    def activations(self, *, recompute: bool) -> int:
        """Returns how many numbers a training pass keeps per token: of every layer, or its input and one layer at a
        time."""
        layer = 6 * self.hidden + 3 * self.query + 4 * self.kv + 4 * self.intermediate
        return self.layers * self.hidden + layer if recompute else self.layers * layer


def adapter_tensor(layer: int, module: str, factor: str) -> str:
    """Returns the name of one factor (`A` or `B`) of a projection (`q` ... `down`) in an adapter's file, as peft writes
    it."""
    block = "self_attn" if module in "qkvo" else "mlp"
    return f"base_model.model.model.layers.{layer}.{block}.{module}_proj.lora_{factor}.weight"


def check_architecture(model: Path, done: str) -> None:
    """Refuses a decoder that is not one of ARCHITECTURES with full attention; `done` is what it cannot be ("trained").

    Raises ConfigError that names the architecture or the setting."""
    config = read_config(model)
    architecture = _architecture(config)
    if architecture not in ARCHITECTURES:
        raise ConfigError(f"{model}: {architecture} cannot be {done}; these can: {', '.join(ARCHITECTURES)}")
    if config.get("use_sliding_window") or set(config.get("layer_types") or ()) - {"full_attention"}:
        raise ConfigError(f"{model}: sliding-window attention cannot be {done}; use a full-attention model")


def _architecture(config: Mapping[str, object]) -> str:
    names = config.get("architectures")
    return str(names[0]) if isinstance(names, list) and names else "unnamed"
