"""A LoRA adapter that changes nothing, as files: what the simulated learner publishes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import orjson
from safetensors.numpy import save

from engine.modeldir.shape import TARGET_MODULES, DecoderShape, adapter_tensor


def zero_adapter(model: Path, rank: int, alpha: int) -> dict[str, bytes]:
    """The files of an adapter that changes nothing, in peft's names and shapes for the model's configuration."""
    shape = DecoderShape.read(model)
    tensors = {}
    for layer in range(shape.layers):
        for module, (outputs, inputs) in shape.projections.items():
            tensors[adapter_tensor(layer, module, "A")] = np.zeros((rank, inputs), np.float32)
            tensors[adapter_tensor(layer, module, "B")] = np.zeros((outputs, rank), np.float32)
    described = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": str(model),
        "r": rank,
        "lora_alpha": alpha,
        "lora_dropout": 0.0,
        "bias": "none",
        "target_modules": TARGET_MODULES,
        "inference_mode": True,
    }
    return {
        "adapter_model.safetensors": save(tensors, metadata={"format": "pt"}),
        "adapter_config.json": orjson.dumps(described, option=orjson.OPT_INDENT_2),
    }
