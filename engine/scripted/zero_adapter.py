"""A LoRA adapter that changes nothing, as files: what the simulated learner publishes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import orjson
from safetensors.numpy import save

from engine.chat.template import read_object

MODULES = ["down_proj", "gate_proj", "k_proj", "o_proj", "q_proj", "up_proj", "v_proj"]


def zero_adapter(model: Path, rank: int, alpha: int) -> dict[str, bytes]:
    """The files of an adapter that changes nothing, in peft's names and shapes for the model's configuration."""
    config = read_object(model / "config.json")
    hidden, inner, heads = config["hidden_size"], config["intermediate_size"], config["num_attention_heads"]
    width = config.get("head_dim") or hidden // heads
    queries, keys = heads * width, config.get("num_key_value_heads", heads) * width
    shapes = {
        "self_attn.q_proj": (hidden, queries),
        "self_attn.k_proj": (hidden, keys),
        "self_attn.v_proj": (hidden, keys),
        "self_attn.o_proj": (queries, hidden),
        "mlp.gate_proj": (hidden, inner),
        "mlp.up_proj": (hidden, inner),
        "mlp.down_proj": (inner, hidden),
    }
    tensors = {}
    for layer in range(config["num_hidden_layers"]):
        for module, (inputs, outputs) in shapes.items():
            name = f"base_model.model.model.layers.{layer}.{module}"
            tensors[f"{name}.lora_A.weight"] = np.zeros((rank, inputs), np.float32)
            tensors[f"{name}.lora_B.weight"] = np.zeros((outputs, rank), np.float32)
    described = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": str(model),
        "r": rank,
        "lora_alpha": alpha,
        "lora_dropout": 0.0,
        "bias": "none",
        "target_modules": MODULES,
        "inference_mode": True,
    }
    return {
        "adapter_model.safetensors": save(tensors, metadata={"format": "pt"}),
        "adapter_config.json": orjson.dumps(described, option=orjson.OPT_INDENT_2),
    }
